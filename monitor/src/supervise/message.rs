//! The messages between the owner and the guardian, as JSON in frames.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::{Frames, frame};
use crate::ProcessId;
use crate::kill::outcome::{Order, Outcome, Rest};
use crate::process::Death;
use crate::sys::signals::SignalSet;

/// A command to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
    /// Variables to set.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Its working directory; that of the guardian unless given.
    pub(crate) directory: Option<PathBuf>,
    /// A descriptor that it inherits under the same number.
    pub(crate) inherited: Option<i32>,
}

/// A message of the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Begin: the witness is there.
    Start,
    /// A signal for a command, or for its process group.
    Signal {
        worker: usize,
        signal: i32,
        group: bool,
    },
    /// Kill a process below the guardian, with what is below it: that process, and no later one
    /// with its pid.
    Kill { id: ProcessId },
    /// End what is left, report what became of it, and exit.
    End(Order),
    /// The grace has ended.
    Hurry,
}

/// A message of the guardian.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Notice {
    /// The process of the command is there; until now the guardian has heard these signals to the
    /// process group of the owner.
    Ready { heard: SignalSet },
    /// A command runs.
    Started { worker: usize, id: ProcessId },
    /// A command could not be started.
    Failed { worker: usize, errno: i32 },
    /// A command was stopped by a signal, when this many SIGCONTs from the owner had been read.
    Stopped {
        worker: usize,
        signal: i32,
        after: u64,
    },
    /// A command is dead.
    Died { worker: usize, death: Death },
    /// The outcome of a kill of a process and what is below it.
    Killed { id: ProcessId, outcome: Outcome },
    /// Something is left in a session of its own, as daemons are.
    Daemons,
    /// Nothing is left, or it was to be left alone. The last message.
    Ended(Rest),
}

/// One side of the conversation.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    frames: Frames,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            frames: Frames::default(),
        }
    }

    /// Returns the stream, to wait for.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.stream.write_all(&encode(message)?)
    }

    /// Reads once, when there is something to read; returns the messages that are whole now, and
    /// whether the other side is still open.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self) -> io::Result<(Vec<M>, bool)> {
        let is_open = match self.frames.read_from(&mut self.stream) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            // The other side has closed with unread messages of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            result => result?,
        };
        let found = self.frames.messages().collect::<Result<_, _>>();
        Ok((found.map_err(io::Error::other)?, is_open))
    }
}

/// Returns a message as a frame.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    frame(&serde_json::to_vec(message)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill::outcome::{Killed, Subject};

    /// Returns what the other side receives.
    fn sent<M: DeserializeOwned>(message: &impl Serialize) -> M {
        let (ours, its) = UnixStream::pair().unwrap();
        Channel::new(ours).send(message).unwrap();
        let (mut found, is_open) = Channel::new(its).receive::<M>().unwrap();
        assert!(is_open && found.len() == 1);
        found.remove(0)
    }

    #[test]
    fn what_is_sent_is_received() {
        let id = ProcessId::new(77, 1_234_567_890);
        let request = Request::Kill { id };
        assert_eq!(sent::<Request>(&request), request);
        let mut outcome = Outcome::default();
        let death = Death::from_wait_status(9);
        outcome.add_killed([Killed::new(Subject::new(id, None), Some(death.clone()))]);
        let notices = [
            Notice::Started { worker: 1, id },
            Notice::Died { worker: 1, death },
            Notice::Killed { id, outcome },
        ];
        for notice in notices {
            assert_eq!(sent::<Notice>(&notice), notice);
        }
    }
}

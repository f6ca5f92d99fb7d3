//! What the owner and the nursery say to each other, as JSON in frames.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ending::Rest;
use super::frame::{Frames, frame};

/// A command to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
    /// Variables to set.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it starts; where the nursery is unless given.
    pub(crate) directory: Option<PathBuf>,
    /// A descriptor that it inherits under the same number.
    pub(crate) inherited: Option<i32>,
}

/// How the rest is to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Sent first, to let it end by itself.
    pub(crate) signal: Option<i32>,
    /// How long to wait after that.
    pub(crate) grace: Duration,
    /// Leave it alive.
    pub(crate) keep: bool,
}

/// From the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// A signal for a command, or for its process group.
    Signal {
        worker: usize,
        signal: i32,
        group: bool,
    },
    /// Kill a process below the nursery, with what is below it: that process, and no heir of its pid.
    Kill { pid: u32, start_ns: u64 },
    /// End what is left, say what became of it, and exit.
    End(Order),
    /// The grace is over.
    Hurry,
}

/// From the nursery.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Notice {
    /// A command runs.
    Started {
        worker: usize,
        pid: u32,
        start_ns: u64,
    },
    /// A command could not be started.
    Failed { worker: usize, errno: i32 },
    /// A command was stopped by a signal.
    Stopped { worker: usize, signal: i32 },
    /// A command is dead, with its status as `wait(2)` gives it.
    Died { worker: usize, status: i32 },
    /// How many processes a kill has hit.
    Killed { pid: u32, count: usize },
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

    /// The stream, to wait for.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.stream.write_all(&encode(message)?)
    }

    /// Reads once, when there is something to read; the messages that are whole now, and whether
    /// the other side is still there.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self) -> io::Result<(Vec<M>, bool)> {
        let is_open = match self.frames.read_from(&mut self.stream) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            // Its end with unread messages of ours in it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            result => result?,
        };
        let mut found = Vec::new();
        while let Some(body) = self.frames.take().map_err(io::Error::other)? {
            found.push(serde_json::from_slice(&body)?);
        }
        Ok((found, is_open))
    }
}

/// A message as a frame.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    frame(&serde_json::to_vec(message)?).map_err(io::Error::other)
}

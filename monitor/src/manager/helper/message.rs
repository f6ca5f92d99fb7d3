//! What the server and the helper say to each other: JSON in frames, in the words that the Python
//! package knows (`_ways/helper.py`).

use std::io;

use serde::{Deserialize, Serialize};

use crate::ProcessId;
use crate::kill::Survivor;
use crate::loss::Incomplete;
use crate::process::{Death, Who};
use crate::supervise::frame::{Frames, MessageError};

/// A request of the server.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// To take these workers, with all below them, into care.
    Watch(Vec<ProcessId>),
    /// To kill one process of the trees with all below it.
    Kill(ProcessId),
    /// To kill everything of all trees.
    End,
    /// To let go of the trees, and to exit.
    Release,
}

/// A notice of the helper.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notice {
    /// The trees as they are known now. The answer to a request to watch, and after each change.
    State(State),
    /// A worker is dead.
    Died {
        #[serde(flatten)]
        id: ProcessId,
        cause: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit: Option<Death>,
        since: String,
    },
    /// The outcome of a kill.
    Ended {
        killed: Vec<ProcessId>,
        survivors: Vec<Survivor>,
    },
}

/// What is known of all trees.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct State {
    /// True if every tree is watched with eBPF.
    pub(super) ebpf: bool,
    /// Living processes whose creator is dead.
    pub(super) orphans: Vec<Who>,
    /// Reasons why something can be missed.
    pub(super) incomplete: Vec<Incomplete>,
}

/// What came from the server.
pub(super) enum Received {
    Nothing,
    Closed,
    Requests(Vec<Request>),
}

pub(super) fn receive(
    socket: &tokio::net::UnixStream,
    frames: &mut Frames,
) -> io::Result<Received> {
    let mut bytes = [0; 4096];
    match socket.try_read(&mut bytes) {
        Ok(0) => return Ok(Received::Closed),
        Ok(read) => frames.push(&bytes[..read]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Ok(Received::Closed);
        }
        Err(error) => return Err(error),
    }
    let mut requests = Vec::new();
    for message in frames.messages() {
        match message {
            Ok(request) => requests.push(request),
            Err(MessageError::Frame(_)) => return Ok(Received::Closed),
            Err(error) => log::warn!("the server: {error}"),
        }
    }
    Ok(Received::Requests(requests))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json, to_value};

    use super::*;

    #[test]
    fn requests_are_understood_as_the_package_sends_them() {
        let watch = from_str(r#"{"watch": [{"pid": 7, "start_ns": 5}]}"#).unwrap();
        assert!(matches!(watch, Request::Watch(workers) if workers == [ProcessId::new(7, 5)]));
        let kill = from_str(r#"{"kill": {"pid": 7, "start_ns": 5}}"#).unwrap();
        assert!(matches!(kill, Request::Kill(id) if id.pid == 7));
        assert!(matches!(from_str(r#""end""#).unwrap(), Request::End));
        assert!(matches!(
            from_str(r#""release""#).unwrap(),
            Request::Release
        ));
    }

    #[test]
    fn notices_are_what_the_package_reads() {
        let died = Notice::Died {
            id: ProcessId::new(7, 5),
            cause: "SIGKILL".to_owned(),
            exit: Some(Death::from_wait_status(9)),
            since: "now".to_owned(),
        };
        let value = to_value(&died).unwrap();
        assert_eq!(value["died"]["pid"], 7);
        assert_eq!(value["died"]["exit"]["signal"], 9);
        assert_eq!(
            to_value(Notice::State(State::default())).unwrap(),
            json!({"state": {"ebpf": false, "orphans": [], "incomplete": []}})
        );
        let ended = Notice::Ended {
            killed: vec![ProcessId::new(7, 5)],
            survivors: Vec::new(),
        };
        assert_eq!(
            to_value(ended).unwrap(),
            json!({"ended": {"killed": [{"pid": 7, "start_ns": 5}], "survivors": []}})
        );
    }
}

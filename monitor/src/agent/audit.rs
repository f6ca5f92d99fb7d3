//! The log of what was done and refused: one JSON object a line on standard error, and fields of
//! the journal where there is one. Names of processes are labels: what decides is in the identity.

use std::os::unix::net::UnixDatagram;

use serde_json::{Map, Value, json};

use crate::kernel::clock::{WallClock, boot_ns};
use crate::report::out;

use super::peer::Peer;

/// Where the journal takes entries.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Writes the log.
#[derive(Debug)]
pub(super) struct Audit {
    journal: Option<UnixDatagram>,
}

impl Audit {
    /// Finds out whether standard error is the journal's.
    pub(super) fn open() -> Self {
        let is_service = std::env::var_os("JOURNAL_STREAM").is_some();
        let connect = || {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            socket.connect(JOURNAL).ok()?;
            Some(socket)
        };
        Self {
            journal: is_service.then(connect).flatten(),
        }
    }

    /// Writes what was done for a caller, or refused to it.
    pub(super) fn write(&self, what: &str, peer: Option<&Peer>, fields: Value) {
        let mut line = Map::new();
        let now = WallClock::now().rfc3339(boot_ns());
        line.insert("time".to_owned(), now.into());
        line.insert("audit".to_owned(), what.into());
        if let Some(peer) = peer {
            let process = json!({"pid": peer.process.pid, "start_ns": peer.process.start_ns});
            line.insert("requester".to_owned(), process);
            line.insert("uid".to_owned(), peer.uid.into());
            line.insert("account".to_owned(), peer.account().into());
        }
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        match &self.journal {
            Some(journal) => {
                // Full is full: nobody waits for the journal.
                let _ = journal.send(entry(&line).as_bytes());
            }
            None => out::tell(&Value::Object(line).to_string()),
        }
    }
}

/// Returns an entry in the journal's own form. Values of several lines do not occur: JSON escapes
/// them.
fn entry(line: &Map<String, Value>) -> String {
    let message = Value::Object(line.clone()).to_string();
    let mut text = format!("MESSAGE={message}\nPRIORITY=5\nSYSLOG_IDENTIFIER=lifemon\n");
    for (name, value) in line {
        let value = match value {
            Value::String(value) => value.replace('\n', " "),
            other => other.to_string(),
        };
        text.push_str(&format!("LIFEMON_{}={value}\n", name.to_uppercase()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_a_line_for_each_field_and_nobody_adds_one() {
        let fields = json!({"audit": "kill", "reason": "a\nMESSAGE=forged"});
        let Value::Object(fields) = fields else {
            unreachable!("an object")
        };
        let text = entry(&fields);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("LIFEMON_AUDIT=kill\n"), "{text}");
    }
}

//! The third way: where this server may not use the tracker, the node agent guards what is below
//! the guardian. When the server ends and the guardian has been killed as well, the agent ends what
//! the workers have left. The guard hangs on a connection that lives as long as the monitor, and on
//! the life of the server's process.

use std::io;
use std::time::Duration;

use serde_json::json;

use crate::client::Client;

/// The time for an answer of the agent.
const ANSWER: Duration = Duration::from_secs(5);

/// A guard of the agent's. It fires when this is dropped.
#[derive(Debug)]
pub(super) struct Guarded {
    client: Client,
    id: String,
}

impl Guarded {
    /// Lets the agent guard everything below a child of this process.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub(super) fn begin(pid: u32) -> io::Result<Self> {
        let mut client = Client::connect(Some(ANSWER))?;
        // Both are named as this pid namespace has them: the server may be in a container.
        let body = json!({"owner": "self", "trees": [format!("ns:{pid}")]});
        let answer = client.ask("POST", "/v1/guards", &[], &body.to_string())?;
        if !answer.is_granted() {
            let (code, detail) = answer.problem();
            return Err(io::Error::other(format!("the agent: {code}: {detail}")));
        }
        let id = answer.json()["id"].as_str().map(str::to_owned);
        let id = id.ok_or_else(|| io::Error::other("the agent names no guard"))?;
        Ok(Self { client, id })
    }

    /// Returns whether the connection that the guard hangs on is open.
    pub(super) fn is_connected(&self) -> bool {
        self.client.is_open()
    }

    /// Takes the guard up on another connection, should the agent have been restarted. `None` where
    /// the agent has no such guard; where it does not answer, that is to be tried again.
    pub(super) fn take_up(mut self) -> Option<Self> {
        let Ok(mut again) = Client::connect(Some(ANSWER)) else {
            return Some(self);
        };
        let path = format!("/v1/guards/{}", self.id);
        let Ok(answer) = again.ask("PUT", &path, &[], "") else {
            return Some(self);
        };
        if answer.status == 404 {
            return None;
        }
        if answer.is_granted() {
            self.client = again;
        }
        Some(self)
    }

    /// Gives the guard back: nothing is to be ended for it any more. Where it is dropped instead,
    /// the agent ends what is left.
    pub(super) fn release(mut self) {
        let path = format!("/v1/guards/{}", self.id);
        let _ = self.client.ask("DELETE", &path, &[], "");
    }
}

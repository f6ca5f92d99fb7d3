//! A guard: what is kept of it on disk, and how far it is.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::ProcessId;
use crate::agent::limits::Taken;
use crate::agent::peer::Scope;
use crate::kernel::Watcher;

/// A guard as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Guard {
    pub(super) id: String,
    /// The boot that the identities are of.
    pub(super) boot: String,
    pub(super) account: String,
    /// Whom its trees are counted for; its account, where an agent before did not tell them apart.
    #[serde(default)]
    pub(super) budget: Option<String>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// What its caller may end; everything by the agent's own power.
    pub(super) ends: Scope,
    pub(super) owner: ProcessId,
    pub(super) trees: Vec<ProcessId>,
    pub(super) grace_ms: Option<u64>,
    pub(super) on_disconnect: bool,
    /// The beginning of the lineage that it was made in; 0 where an agent before did not note it.
    #[serde(default)]
    pub(super) tracked_since_ns: u64,
    /// The reason why it fires, once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fires: Option<Cause>,
}

/// The reason why a guard fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    OwnerDied,
    Disconnected,
}

/// How far a guard is.
pub(super) enum State {
    /// Armed, and its owner's end is not waited for yet: no descriptor was left for that.
    Unattended,
    /// Armed: this task waits for its owner's end.
    Armed(AbortHandle),
    /// It has fired, and its trees are being ended.
    Firing,
    /// It has fired, and not everything could be done: the next agent tries again.
    Failed,
}

impl State {
    /// Returns the word of the answers.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Unattended | Self::Armed(_) => "armed",
            Self::Firing => "firing",
            Self::Failed => "failed",
        }
    }
}

/// A guard that this agent has.
pub(super) struct Entry {
    pub(super) guard: Guard,
    /// The connection whose end fires it.
    pub(super) connection: Option<u64>,
    /// Keeps the roots' ghosts, so that their trees are found.
    pub(super) watcher: Option<Watcher>,
    /// Changed by [`Entry::enter`] alone.
    state: State,
    _taken: Vec<[Taken; 2]>,
}

impl Entry {
    /// Begins a guard, whose owner is not waited for yet.
    pub(super) fn new(guard: Guard, watcher: Option<Watcher>, taken: Vec<[Taken; 2]>) -> Self {
        Self {
            guard,
            connection: None,
            watcher,
            state: State::Unattended,
            _taken: taken,
        }
    }

    /// Returns how far it is.
    pub(super) const fn state(&self) -> &State {
        &self.state
    }

    /// Returns what its caller may know of it.
    pub(super) fn json(&self) -> Value {
        let id = |id: &ProcessId| json!({"pid": id.pid, "start_ns": id.start_ns});
        let guard = &self.guard;
        json!({
            "id": guard.id,
            "owner": id(&guard.owner),
            "trees": guard.trees.iter().map(id).collect::<Vec<_>>(),
            "grace_ms": guard.grace_ms,
            "on_disconnect": guard.on_disconnect,
            "connected": self.connection.is_some(),
            "state": self.state.word(),
        })
    }

    /// Changes how far it is; returns false where that does not follow, and nothing is changed. An
    /// owner that it does not depend on any more is not waited for.
    pub(super) fn enter(&mut self, next: State) -> bool {
        let follows = matches!(
            (&self.state, &next),
            (State::Unattended, State::Armed(_) | State::Firing)
                | (State::Armed(_), State::Unattended | State::Firing)
                | (State::Firing, State::Failed)
        );
        let left = if follows {
            std::mem::replace(&mut self.state, next)
        } else {
            next
        };
        if let State::Armed(waiting) = left {
            waiting.abort();
        }
        follows
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let State::Armed(waiting) = &self.state {
            waiting.abort();
        }
    }
}

/// Returns an identity as it is written in the log.
pub(super) fn text(id: ProcessId) -> String {
    format!("{}@{}", id.pid, id.start_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let id = ProcessId::new(7, 7);
        let guard = Guard {
            id: "g".to_owned(),
            boot: String::new(),
            account: "uid 1".to_owned(),
            budget: None,
            uid: 1,
            gid: 1,
            ends: serde_json::from_value(json!({"reach": "User", "uid": 1, "container": null,
                "namespaces": {"pid": 1, "user": 1}}))
            .unwrap(),
            owner: id,
            trees: vec![id],
            grace_ms: None,
            on_disconnect: false,
            tracked_since_ns: 0,
            fires: None,
        };
        Entry::new(guard, None, Vec::new())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_guard_fires_once_and_waits_for_its_owner_only_before_that() {
        let waiting = || tokio::spawn(std::future::pending::<()>());
        let mut entry = entry();
        let (first, second) = (waiting(), waiting());
        assert!(entry.enter(State::Armed(first.abort_handle())));
        // Somebody else has begun to wait meanwhile.
        assert!(!entry.enter(State::Armed(second.abort_handle())));
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(entry.state().word(), "armed");
        assert!(!entry.enter(State::Failed));
        assert!(entry.enter(State::Firing));
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(!entry.enter(State::Firing) && !entry.enter(State::Unattended));
        assert!(entry.enter(State::Failed));
        assert!(!entry.enter(State::Firing));
        assert_eq!(entry.state().word(), "failed");
    }
}

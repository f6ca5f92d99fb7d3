//! Refuses to kill what must not be killed: the host's init, lifemon itself, and what it was
//! started from.

use std::collections::HashSet;

use lifemon_ebpf::ProcessId;

use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc;

/// Parents that are looked at above this process: deeper than any real tree, and an end.
const ANCESTORS: usize = 1_024;

/// A reason why a tree is not killed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KillRefusal {
    /// The whole host.
    #[error(
        "process 1 is the host's init: killing its tree would end everything; name a smaller tree"
    )]
    Init,
    /// This very process.
    #[error("{0} is lifemon itself")]
    Myself(u32),
    /// A tree that this process belongs to.
    #[error(
        "{0} is an ancestor of this lifemon (your shell or sudo, perhaps); --force kills it all \
        the same, but never lifemon itself"
    )]
    Ancestor(u32),
    /// A pid alone that has been given to another process since the kill was asked for.
    #[error(
        "process {} is gone; its pid is that of a process by now that is younger than this call; \
         {}@{} names that one", .0.pid, .0.pid, .0.start_ns
    )]
    Younger(ProcessId),
    /// A pid alone that is a living process, and was that of a dead one that has left others.
    #[error(
        "pid {} is {}@{} now, and was {}@{}, which is dead and has living processes below; name one \
         of them by its identity",
        .now.pid, .now.pid, .now.start_ns, .ghost.pid, .ghost.start_ns
    )]
    Ambiguous {
        /// The process that has the pid.
        now: ProcessId,
        /// The one that had it.
        ghost: ProcessId,
    },
}

/// Knows this process and what it was started from.
#[derive(Debug)]
pub(crate) struct Guard {
    own: ProcessId,
    /// Its creators.
    ancestors: HashSet<ProcessId>,
    /// Pids of its parents.
    parents: HashSet<u32>,
}

impl Guard {
    /// Looks up from this process.
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let own_pid = std::process::id();
        let own = snapshot.live(own_pid).map(|(id, _)| *id);
        let own = own
            .or_else(|| proc::identify(own_pid))
            .unwrap_or(ProcessId::NONE);
        let forest = Forest::new(snapshot.records.iter().copied());
        Self {
            own,
            ancestors: forest.ancestors(&own).into_iter().collect(),
            parents: parents_of(own_pid),
        }
    }

    /// Returns this process.
    pub(crate) fn own(&self) -> ProcessId {
        self.own
    }

    /// Checks that the tree of `root` may be killed.
    pub(crate) fn check(&self, root: ProcessId, force: bool) -> Result<(), KillRefusal> {
        if root.pid == 1 {
            return Err(KillRefusal::Init);
        }
        if root.pid == std::process::id() {
            return Err(KillRefusal::Myself(root.pid));
        }
        let is_parent = self.parents.contains(&root.pid) && proc::owns_pid(root);
        if (is_parent || self.ancestors.contains(&root)) && !force {
            return Err(KillRefusal::Ancestor(root.pid));
        }
        Ok(())
    }
}

/// Checks as [`Guard::check`] does; returns this process, which is never killed.
#[cfg(feature = "cli")]
pub(crate) fn check(
    root: ProcessId,
    snapshot: &Snapshot,
    force: bool,
) -> Result<ProcessId, KillRefusal> {
    let guard = Guard::new(snapshot);
    guard.check(root, force)?;
    Ok(guard.own())
}

/// Returns everybody above `pid` by the parents that `/proc` shows.
fn parents_of(pid: u32) -> HashSet<u32> {
    let mut parents = HashSet::new();
    let mut at = pid;
    for _ in 0..ANCESTORS {
        match proc::stat(at) {
            Some(stat) if stat.parent != 0 => at = stat.parent,
            _ => break,
        }
        parents.insert(at);
    }
    parents
}

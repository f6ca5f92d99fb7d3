//! Whom lifemon does not kill.

use lifemon_ebpf::ProcessId;

use crate::forest::Forest;
use crate::kernel::tracker::Snapshot;
use crate::proc;

/// Parents that are looked at above this process: deeper than any real tree, and an end.
const ANCESTORS: usize = 1_024;

/// Why a tree is not killed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
        "{0} is an ancestor of this lifemon (your shell or sudo, perhaps); --force kills it all the same, but never lifemon itself"
    )]
    Ancestor(u32),
}

/// Whether the tree of `root` may be killed; the identity of this process, which never is.
pub(crate) fn check(
    root: ProcessId,
    snapshot: &Snapshot,
    force: bool,
) -> Result<ProcessId, KillRefusal> {
    let own_pid = std::process::id();
    let own = snapshot.live(own_pid).map(|(id, _)| *id);
    let own = own
        .or_else(|| proc::identify(own_pid))
        .unwrap_or(ProcessId::NONE);
    if root.pid == 1 {
        return Err(KillRefusal::Init);
    }
    if root.pid == own_pid {
        return Err(KillRefusal::Myself(own_pid));
    }
    let forest = Forest::new(snapshot.records.iter().copied());
    let is_ancestor = forest.ancestors(&own).contains(&root) || is_parent_of(own_pid, root);
    if is_ancestor && !force {
        return Err(KillRefusal::Ancestor(root.pid));
    }
    Ok(own)
}

/// Whether `root` is above `pid` by the parents that `/proc` shows.
fn is_parent_of(pid: u32, root: ProcessId) -> bool {
    let mut at = pid;
    for _ in 0..ANCESTORS {
        match proc::stat(at) {
            Some(stat) if stat.parent != 0 => at = stat.parent,
            _ => return false,
        }
        if at == root.pid {
            return proc::is_same(root);
        }
    }
    false
}

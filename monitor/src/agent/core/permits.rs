//! Whom a caller may end, and who sends the signals. The kernel decides, and where the caller would
//! harm itself or others unawares, it has to say that it wants to.

use std::io;
use std::sync::Arc;

use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::kill::envoy::Envoy;
use crate::kill::marks::MpsClients;
use crate::proc;
use crate::report::out::printable;
use crate::sys::pidfd;

use super::Core;
use crate::agent::deputy::Deputy;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::rights::Reach;
use crate::agent::view::View;

/// Returns whom no kill ends: the fronts. The core spares itself.
pub(super) fn protected(core: &Core) -> Vec<ProcessId> {
    let Ok(snapshot) = core.snapshot() else {
        return Vec::new();
    };
    let pids = core.fronts().pids().into_iter();
    let ids = pids.filter_map(|pid| snapshot.live(pid).map(|(id, _)| *id));
    ids.collect()
}

/// Returns who sends the signals of a caller; `None` for the agent itself.
pub(super) fn envoy(peer: &Peer) -> Result<Option<Arc<dyn Envoy>>, Problem> {
    if peer.rights.ends == Reach::All {
        return Ok(None);
    }
    let deputy = Deputy::start(peer.scope(peer.rights.ends), peer.uid, peer.gid);
    let deputy = deputy.map_err(|error| {
        let detail = format!("no process with your rights can be started: {error}");
        Problem::new(Code::Unavailable, detail)
    })?;
    Ok(Some(Arc::new(deputy)))
}

/// Checks that a caller may end the root of a tree, as far as it lives.
pub(super) fn check(
    view: &View<'_>,
    root: ProcessId,
    envoy: Option<&dyn Envoy>,
) -> Result<(), Problem> {
    if root.pid == 1 {
        let detail = "process 1 is the host's init: its tree is everything";
        return Err(Problem::new(Code::Protected, detail));
    }
    let Some(envoy) = envoy else { return Ok(()) };
    if !proc::is_live(root) {
        return Ok(());
    }
    let refused = |why: &dyn std::fmt::Display| {
        let detail = format!("you may not end {}@{}: {why}", root.pid, root.start_ns);
        Problem::new(Code::Forbidden, detail)
    };
    if !view.may_reach(root) {
        return Err(refused(&"it is outside of what is yours"));
    }
    ask(Some(envoy), root).map_err(|error| refused(&error))
}

/// Asks the kernel whether the caller may end a process; whoever is dead by now may be.
fn ask(envoy: Option<&dyn Envoy>, id: ProcessId) -> io::Result<()> {
    let Some(envoy) = envoy else { return Ok(()) };
    let pidfd = pidfd::open(id.pid)?;
    if !proc::owns_pid(id) {
        return Ok(());
    }
    match envoy.send(id, &pidfd, 0) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// Checks that the caller does not end itself unasked.
pub(super) fn check_is_not_own(
    peer: &Peer,
    root: ProcessId,
    snapshot: &Snapshot,
    forest: &Forest,
) -> Result<(), Problem> {
    let own = snapshot.exact(peer.process);
    if own.is_none_or(|own| own != root && !forest.ancestors(&own).contains(&root)) {
        return Ok(());
    }
    let detail = format!(
        "you are of the tree of {}@{} yourself; nothing was killed; it can be killed all the same",
        root.pid, root.start_ns
    );
    Err(Problem::new(Code::OwnTree, detail))
}

/// Returns the members of a tree that are clients of CUDA MPS and would be killed. Those that are
/// left out do not die, and are none of the caller's business.
pub(super) fn mps_clients(
    forest: &Forest,
    root: ProcessId,
    envoy: Option<&dyn Envoy>,
) -> MpsClients {
    MpsClients::find(forest, root, |id| ask(envoy, id).is_ok())
}

impl From<MpsClients> for Problem {
    fn from(clients: MpsClients) -> Self {
        Self::new(Code::MpsClients, printable(&clients.to_string()))
    }
}

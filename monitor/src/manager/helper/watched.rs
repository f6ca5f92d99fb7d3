//! Trees that are watched with eBPF, some of them as one session each.

use std::future::poll_fn;
use std::task::Poll;

use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::{self, LoadOptions, Tracker, WatchOptions};
use crate::proc;
use crate::session::{Session, Update};

/// Begins to watch these trees as one; returns the exact identities of the workers as well.
pub(super) fn begin(workers: &[ProcessId]) -> Result<(Session, Vec<ProcessId>), kernel::Error> {
    let nobody = || kernel::Error::NoProcess("worker".to_owned());
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let exact = workers.iter().filter_map(|worker| snapshot.exact(*worker));
    let exact: Vec<_> = exact.collect();
    let (root, others) = exact.split_first().ok_or_else(nobody)?;
    let (session, _) = Session::start_all(tracker, *root, others, &WatchOptions::default())?;
    Ok((session, exact))
}

/// Returns who lives below a member of a session, by the lineage that its tracker knows: one that
/// is loaded for a kill knows only parents. `None` if it is no living member.
pub(super) fn below(session: &Session, id: ProcessId) -> Option<Vec<ProcessId>> {
    let root = session.watch().exact(id)?;
    let snapshot = session.watcher().tracker().snapshot().ok();
    let living = snapshot.map(|snapshot| Forest::new(snapshot.records).living(root));
    let below = living.unwrap_or_default().into_iter();
    Some(below.filter(|member| *member != root).collect())
}

/// Returns whether one of these has ever reaped a child, or has one to reap: only then can
/// something have lost its place in the tree before that was watched.
pub(super) fn have_reaped(members: &[ProcessId]) -> bool {
    members.iter().any(|member| {
        let children = proc::children(member.pid).unwrap_or_default();
        let is_dead = |pid: &u32| proc::stat(*pid).is_none_or(|stat| stat.is_gone());
        proc::stat(member.pid).is_none_or(|stat| stat.children_faults > 0)
            || children.iter().any(is_dead)
    })
}

/// Waits for updates of any session; for ever while there is none.
pub(super) async fn next(sessions: &mut [Session]) -> (usize, Result<Vec<Update>, kernel::Error>) {
    let next = sessions.iter_mut().map(|session| Box::pin(session.next()));
    let mut next: Vec<_> = next.collect();
    poll_fn(|context| {
        for (index, updates) in next.iter_mut().enumerate() {
            if let Poll::Ready(updates) = updates.as_mut().poll(context) {
                return Poll::Ready((index, updates));
            }
        }
        Poll::Pending
    })
    .await
}

//! The tree when watching began: the kernel's members, described from the records.

use std::collections::HashSet;

use lifemon_ebpf::{LIVE, ProcessId, Record};

use crate::forest::Forest;
use crate::kernel::Watcher;
use crate::loss::Loss;
use crate::process::{Death, Process};

/// The tree when watching began.
#[derive(Debug, Clone)]
pub struct Start {
    /// The root, alive or dead.
    pub root: Process,
    /// Living members, each creator before what it created.
    pub members: Vec<Process>,
    /// Dead processes of the tree with living descendants, and how and when they died.
    pub ghosts: Vec<(Process, u64, Death)>,
    /// What is not complete, with how much of it.
    pub losses: Vec<(Loss, u64)>,
    /// Since when the lineage is known, ns since boot.
    pub since_ns: u64,
}

/// Describes the tree from the kernel's members and the records.
pub(super) fn describe(
    root: ProcessId,
    members: &[ProcessId],
    records: &[(ProcessId, Record)],
    since_ns: u64,
    watcher: &Watcher,
) -> Start {
    let forest = Forest::new(records.iter().copied());
    let process = |id: &ProcessId| {
        forest.record(id).map_or_else(
            || Process::unknown(*id),
            |record| Process::of_record(*id, record),
        )
    };
    // A member that has died since the members were read, and left no ghost, has no record any more:
    // its events are in the ring. Where the lineage map is full there never was one.
    let is_full = watcher.tracker().host_counters().lost_records > 0;
    let mut wanted: HashSet<_> = members
        .iter()
        .copied()
        .filter(|id| is_full || forest.record(id).is_some())
        .collect();
    let order = forest.tree(root);
    let mut living: Vec<_> = order
        .iter()
        .filter(|id| wanted.remove(id))
        .map(process)
        .collect();
    // Members that the records do not connect to the root, or that have none.
    let mut rest: Vec<_> = wanted.into_iter().collect();
    rest.sort_unstable();
    living.extend(rest.iter().map(process));
    let ghosts = order
        .iter()
        .filter_map(|id| Some((*id, forest.record(id)?)))
        .filter(|(_, record)| record.state != LIVE)
        .map(|(id, record)| {
            (
                Process::of_record(id, record),
                record.exit_ns,
                Death::of_record(record),
            )
        })
        .collect();
    let unlabelled = watcher.unlabelled();
    let losses = [
        (Loss::LineageFull, unlabelled.unrecorded),
        (Loss::Unsettled, unlabelled.unsettled),
        (Loss::MembersFull, unlabelled.failed),
        (Loss::MissedRuns, watcher.tracker().missed_forks()),
    ];
    let losses = losses.into_iter().filter(|(_, count)| *count > 0).collect();
    Start {
        root: process(&root),
        members: living,
        ghosts,
        losses,
        since_ns,
    }
}

//! The tree when watching began: the kernel's members, described from the records.

use std::collections::HashSet;

use lifemon_ebpf::{INFERRED, ProcessId, Record};
use serde::{Deserialize, Serialize};

use crate::forest::Forest;
use crate::kernel::{Watcher, pins};
use crate::loss::Loss;
use crate::process::{Died, Process};

/// A dead process of a tree with living descendants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ghost {
    /// The dead process.
    #[serde(flatten)]
    pub process: Process,
    /// Time and kind of its death.
    pub died: Died,
}

/// One kind of loss, and its amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LostAtStart {
    /// The kind of loss.
    pub loss: Loss,
    /// The amount; 0 where there is none, as of a missing history.
    pub count: u64,
}

/// The tree when watching began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Start {
    /// The root, alive or dead.
    pub root: Process,
    /// Living members, each creator before what it created.
    pub members: Vec<Process>,
    /// Dead processes of the tree with living descendants.
    pub ghosts: Vec<Ghost>,
    /// The losses that make it incomplete.
    pub losses: Vec<LostAtStart>,
    /// Since when the lineage is known, ns since boot.
    pub since_ns: u64,
}

/// Describes the tree from the kernel's members and the records.
pub(super) fn describe(
    root: ProcessId,
    others: &[ProcessId],
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
    // A member that has died since the members were read, and left no ghost, has no record any
    // more: its events are in the ring. Where the lineage map is full there never was one.
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
        .filter_map(|(id, record)| {
            Some(Ghost {
                died: Died::of_record(record)?,
                process: Process::of_record(id, record),
            })
        })
        .collect();
    let unlabelled = watcher.unlabelled();
    let root = process(&root);
    let is_inferred = |id| {
        let record = forest.record(id);
        record.is_some_and(|record| record.origin & INFERRED != 0)
    };
    let is_older = root.inferred || others.iter().any(is_inferred);
    let history = if watcher.tracker().is_pinned() {
        is_older.then_some(Loss::NoHistory)
    } else {
        Some(pins::missing_history())
    };
    let losses = [
        (Loss::LineageFull, unlabelled.unrecorded),
        (Loss::Unsettled, unlabelled.unsettled),
        (Loss::MembersFull, unlabelled.failed),
        (Loss::MissedRuns, watcher.tracker().missed_forks()),
    ];
    let losses = losses.into_iter().filter(|(_, count)| *count > 0);
    let losses = history.map(|loss| (loss, 0)).into_iter().chain(losses);
    Start {
        root,
        members: living,
        ghosts,
        losses: losses
            .map(|(loss, count)| LostAtStart { loss, count })
            .collect(),
        since_ns,
    }
}

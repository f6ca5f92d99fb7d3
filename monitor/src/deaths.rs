//! Those of the deaths in the flight recorder that somebody asks about: of a time, of a user, of a
//! tree.

use std::collections::HashSet;

use lifemon_ebpf::{LogEntry, ProcessId};

use crate::forest::Forest;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::loss::Loss;

/// The deaths that are asked about; all of them by default.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Only those since then, ns since boot.
    pub since_ns: Option<u64>,
    /// Only those of this user's processes.
    pub user: Option<u32>,
    /// Only those of these processes.
    pub tree: Option<HashSet<ProcessId>>,
}

impl Choice {
    /// Returns whether a death is asked about.
    #[must_use]
    pub fn means(&self, entry: &LogEntry) -> bool {
        let tree = self.tree.as_ref();
        self.since_ns.is_none_or(|since| entry.time_ns >= since)
            && self.user.is_none_or(|user| entry.uid == user)
            && tree.is_none_or(|tree| tree.contains(&entry.process))
    }

    /// Returns what of the time that is asked about is not known. `user` is the only one whose
    /// deaths are shown, if there is one.
    #[must_use]
    pub fn losses(&self, user: Option<u32>, log: &Log, snapshot: &Snapshot) -> Vec<Loss> {
        let Some(since_ns) = self.since_ns else {
            return Vec::new();
        };
        let losses = [
            (Loss::NoHistory, since_ns < snapshot.since_ns),
            (Loss::Overwritten, since_ns < log.whole_since_ns(user)),
        ];
        let standing = losses.into_iter().filter(|(_, stands)| *stands);
        standing.map(|(loss, _)| loss).collect()
    }
}

/// Returns everybody who is known to be of the tree of a process: by the lineage, and by the deaths
/// that were recorded. The process itself may be known from its death alone.
#[must_use]
pub fn tree(root: ProcessId, log: &Log, forest: &Forest) -> HashSet<ProcessId> {
    let mut tree: HashSet<ProcessId> = forest.tree(root).into_iter().collect();
    tree.insert(root);
    // Who died later may be the creator of who died before.
    loop {
        let known = tree.len();
        for entry in log.entries.iter().rev() {
            if tree.contains(&entry.creator) {
                tree.insert(entry.process);
            }
        }
        if tree.len() == known {
            return tree;
        }
    }
}

/// Returns the latest death that is one of these.
#[must_use]
pub fn latest(log: &Log, is_meant: impl Fn(&LogEntry) -> bool) -> Option<ProcessId> {
    let mut latest = log.entries.iter().rev();
    latest
        .find(|entry| is_meant(entry))
        .map(|entry| entry.process)
}

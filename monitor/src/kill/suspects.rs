//! Processes that look like former members of a tree whose history is missing: nobody saw their
//! creators die, so nothing here is certain. Each comes with its evidence, and none is killed
//! unless that was asked for.
//!
//! A process that is orphaned goes to the nearest subreaper above it, or to the init of its pid
//! namespace ([1]). So a former member is a child of somebody above the root that takes in orphans,
//! it has started after the root, and it is older than tracking: of anybody younger the creator is
//! known. The children that a subreaper has created by itself look the same, and what they have
//! from it connects nobody with the tree: so only that counts which a process has in common with
//! the root or a member, and not with its present parent. Files and memory count only where nobody
//! above the root has them: a pipe to a log is handed down to all that is started. Leaders of
//! sessions are daemons, and stand for themselves.
//!
//! [1]: <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n640>

use std::collections::{HashMap, HashSet};

use lifemon_ebpf::{INFERRED, ProcessId};

use super::outcome::Suspect;
use super::refuse::Guard;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Error, Tracker};
use crate::proc::{self, Belongings};
use crate::process::Process;

/// What becomes of suspects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Suspects {
    /// They are reported, and the kill is not done while there are some.
    #[default]
    Report,
    /// They are reported.
    Accept,
    /// They die with the tree, and everything below them.
    Kill,
}

/// Finds the suspects of the tree of `root`; none where its whole history is known.
///
/// # Errors
/// When it cannot be seen who takes in orphans.
pub(super) fn find(
    tracker: &mut Tracker,
    snapshot: &Snapshot,
    guard: &Guard,
    root: ProcessId,
) -> Result<Vec<Suspect>, Error> {
    let forest = Forest::new(snapshot.records.iter().copied());
    let mut candidates = candidates(&forest, root);
    candidates.retain(|(id, _)| guard.check(*id, false).is_ok());
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let subreapers = tracker.subreapers()?;
    candidates.retain(|(_, parent)| {
        let is_init = |id| forest.record(id).is_some_and(|record| record.ns_pid == 1);
        subreapers.contains(parent) || is_init(parent)
    });
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let mut tree = Belongings::of(root);
    for member in forest.living(root) {
        tree.add(member);
    }
    let mut above = Belongings::default();
    for ancestor in forest.ancestors(&root) {
        above.add_files(ancestor);
    }
    let mut parents = HashMap::new();
    let mut suspects = Vec::new();
    for (id, parent) in candidates {
        let of_parent = parents
            .entry(parent)
            .or_insert_with(|| Belongings::of(parent));
        if proc::stat(id.pid).is_none_or(|stat| stat.session == id.pid) {
            continue;
        }
        let evidence = Belongings::of(id).shared_with(&tree, of_parent, &above);
        if let (Some(record), false) = (forest.record(&id), evidence.is_empty()) {
            let name = |record| Process::of_record(parent, record).who();
            suspects.push(Suspect {
                process: Process::of_record(id, record).into(),
                parent: forest
                    .record(&parent)
                    .map_or_else(|| Process::unknown(parent).who(), name),
                evidence,
                killed: false,
            });
        }
    }
    Ok(suspects)
}

/// Returns the living processes that may be former members by what the records tell, each with the
/// parent that it had when it was learnt: a process above the root.
fn candidates(forest: &Forest, root: ProcessId) -> Vec<(ProcessId, ProcessId)> {
    let is_inferred = |id: &ProcessId| {
        let record = forest.record(id);
        record.is_some_and(|record| record.origin & INFERRED != 0)
    };
    if !is_inferred(&root) {
        return Vec::new();
    }
    let above: HashSet<ProcessId> = forest.ancestors(&root).into_iter().collect();
    let mut found = Vec::new();
    for parent in &above {
        let children = forest.children(parent).iter();
        let younger = children
            .filter(|id| id.start_ns > root.start_ns && !above.contains(id) && is_inferred(id));
        for id in younger {
            found.extend(living_below(forest, *id).map(|id| (id, *parent)));
        }
    }
    found.sort_unstable();
    found
}

/// Returns the process itself, or the living that a dead one has left: they may be former members
/// as it may have been one.
fn living_below(forest: &Forest, id: ProcessId) -> impl Iterator<Item = ProcessId> {
    let mut found = Vec::new();
    let mut waiting = vec![id];
    // A circle in a half-written snapshot ends here.
    let mut seen = HashSet::new();
    while let Some(id) = waiting.pop() {
        if forest.is_live(&id) {
            found.push(id);
        } else if seen.insert(id) {
            waiting.extend(forest.children(&id));
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::{DEAD, LIVE, Record};

    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId::new(pid, u64::from(pid) * 10)
    }

    fn older(pid: u32, creator: u32, state: u64) -> (ProcessId, Record) {
        let creator = if creator == 0 {
            ProcessId::NONE
        } else {
            id(creator)
        };
        let origin = INFERRED;
        (
            id(pid),
            Record {
                creator,
                state,
                origin,
                ..Record::default()
            },
        )
    }

    fn found(records: &[(ProcessId, Record)], root: u32) -> Vec<u32> {
        let forest = Forest::new(records.iter().copied());
        let found = candidates(&forest, id(root)).into_iter();
        found.map(|(id, _)| id.pid).collect()
    }

    #[test]
    fn who_was_taken_in_above_the_root_and_is_younger_is_a_candidate() {
        let host = [
            older(1, 0, LIVE),
            older(2, 1, LIVE),
            older(5, 2, LIVE),
            older(6, 5, LIVE),
            // An older one, one beside an ancestor, and one of somebody who is not above the root.
            older(3, 1, LIVE),
            older(7, 1, LIVE),
            older(8, 2, LIVE),
            older(9, 7, LIVE),
        ];
        assert_eq!(found(&host, 5), [7, 8]);
        assert_eq!(found(&host, 6), [7, 8]);
    }

    #[test]
    fn what_a_dead_candidate_has_left_is_one() {
        let host = [
            older(1, 0, LIVE),
            older(5, 1, LIVE),
            older(6, 1, DEAD),
            older(7, 6, DEAD),
            older(8, 7, LIVE),
            older(9, 6, LIVE),
        ];
        assert_eq!(found(&host, 5), [8, 9]);
    }

    #[test]
    fn a_tree_whose_history_is_known_has_none() {
        let (root, mut record) = older(5, 1, LIVE);
        record.origin = 0;
        let host = [older(1, 0, LIVE), (root, record), older(6, 1, LIVE)];
        assert!(found(&host, 5).is_empty());
    }
}

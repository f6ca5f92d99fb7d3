//! All records of the lineage at one time.

use std::collections::HashMap;
use std::io;

use lifemon_ebpf::{HELD, LIVE, NOT_HELD, ProcessId, Record};

use crate::loss::Loss;

/// All records at one time. Each bucket of the map was read under its lock, the whole was not:
/// what lived through the whole reading is in it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every process and ghost.
    pub records: Vec<(ProcessId, Record)>,
    /// Records whose creators could not be read although they hold them: they changed each time.
    pub unsettled: u64,
    /// The beginning of tracking, in ns since boot.
    pub since_ns: u64,
    /// Processes without a record because the map was full, since tracking began.
    pub lost_records: u64,
    /// Forks that the kernel did not run the hook for.
    pub missed_forks: u64,
    /// True if it is of the host's tracker, which was there before the command.
    pub is_pinned: bool,
}

impl Snapshot {
    /// Returns what makes answers from this incomplete.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        let losses = [
            (Loss::NoHistory, !self.is_pinned),
            (
                Loss::LineageFull,
                self.lost_records > 0 || self.lost_tops().next().is_some(),
            ),
            (Loss::Unsettled, self.unsettled > 0),
            (Loss::MissedRuns, self.missed_forks > 0),
        ];
        let standing = losses.into_iter().filter(|(_, stands)| *stands);
        standing.map(|(loss, _)| loss).collect()
    }

    /// Returns those whose creator was lost: nobody can say what they and all below them descend
    /// from.
    pub fn lost_tops(&self) -> impl Iterator<Item = ProcessId> {
        let is_lost = |record: &Record| !matches!(record.holds_creator, HELD | NOT_HELD);
        let lost = self
            .records
            .iter()
            .filter(move |(_, record)| is_lost(record));
        lost.map(|(id, _)| *id)
    }

    /// Returns the living process that has this pid now.
    #[must_use]
    pub fn live(&self, pid: u32) -> Option<&(ProcessId, Record)> {
        self.records
            .iter()
            .find(|(id, record)| id.pid == pid && record.state == LIVE)
    }

    /// Returns the latest ghost that had this pid.
    #[must_use]
    pub fn ghost(&self, pid: u32) -> Option<&(ProcessId, Record)> {
        self.records
            .iter()
            .filter(|(id, record)| id.pid == pid && record.state != LIVE)
            .max_by_key(|(id, _)| id.start_ns)
    }
}

/// Looks again at whoever holds a creator that the reading has not: the creator was inserted behind
/// the reading, or a death has spliced it out in front of it, or its name was half written. Returns
/// all records, and how many are still open after [`LOOKS`].
///
/// # Errors
/// When `read` fails, which returns a record as it is now.
pub(super) fn complete(
    records: Vec<(ProcessId, Record)>,
    read: impl Fn(&ProcessId) -> io::Result<Option<Record>>,
) -> io::Result<(Vec<(ProcessId, Record)>, u64)> {
    let mut known: HashMap<_, _> = records.into_iter().collect();
    let mut open = Vec::new();
    for _ in 0..LOOKS {
        let is_open =
            |record: &Record| record.holds_creator == HELD && !known.contains_key(&record.creator);
        let found = known.iter().filter(|(_, record)| is_open(record));
        open = found.map(|(id, record)| (*id, record.creator)).collect();
        if open.is_empty() {
            break;
        }
        for (id, creator) in &open {
            for id in [creator, id] {
                match read(id)? {
                    Some(record) => known.insert(*id, record),
                    None => known.remove(id),
                };
            }
        }
    }
    Ok((known.into_iter().collect(), open.len() as u64))
}

/// Looks at one reading. A record changes its creator only as it dies.
const LOOKS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId::new(pid, u64::from(pid))
    }

    fn held(creator: u32) -> Record {
        Record {
            creator: id(creator),
            holds_creator: HELD,
            ..Record::default()
        }
    }

    fn top() -> Record {
        Record::default()
    }

    /// Completes a reading while the map is as `now` says.
    fn completed(seen: &[(u32, Record)], now: &[(u32, Record)]) -> (Vec<u32>, u64) {
        let now: HashMap<_, _> = now
            .iter()
            .map(|(pid, record)| (id(*pid), *record))
            .collect();
        let seen = seen
            .iter()
            .map(|(pid, record)| (id(*pid), *record))
            .collect();
        let read = |id: &ProcessId| Ok(now.get(id).copied());
        let (records, open) = complete(seen, read).unwrap();
        let mut pids: Vec<_> = records.iter().map(|(id, _)| id.pid).collect();
        pids.sort_unstable();
        (pids, open)
    }

    #[test]
    fn a_creator_behind_the_reading_is_read() {
        let now = [(1, top()), (2, held(1)), (3, held(2)), (4, held(3))];
        assert_eq!(completed(&[now[0], now[3]], &now), (vec![1, 2, 3, 4], 0));
    }

    #[test]
    fn a_creator_that_was_spliced_out_is_passed_over() {
        let now = [(1, top()), (3, held(1))];
        assert_eq!(
            completed(&[(1, top()), (3, held(2))], &now),
            (vec![1, 3], 0)
        );
    }

    #[test]
    fn whoever_has_gone_meanwhile_is_left_out() {
        assert_eq!(
            completed(&[(1, top()), (3, held(2))], &[(1, top())]),
            (vec![1], 0)
        );
        // Also where it was read as the creator of another.
        let seen = [(1, top()), (3, held(2)), (4, held(3))];
        assert_eq!(completed(&seen, &[(1, top())]), (vec![1], 0));
    }

    #[test]
    fn what_never_settles_is_counted() {
        let seen = vec![(id(1), top()), (id(3), held(2))];
        let reads = RefCell::new(10);
        // Each time another creator, which is never there.
        let read = |asked: &ProcessId| {
            *reads.borrow_mut() += 1;
            Ok((*asked == id(3)).then(|| held(*reads.borrow())))
        };
        let (records, open) = complete(seen, read).unwrap();
        assert_eq!((records.len(), open), (2, 1));
    }
}

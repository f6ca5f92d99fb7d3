//! All records of the lineage at one time.

use std::collections::HashMap;
use std::io;

use lifemon_ebpf::{HELD, LIVE, NOT_HELD, ProcessId, Record};

use super::pins;
use crate::loss::Loss;
use crate::proc;
use crate::process::{is_same_process, is_to_a_tick};

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
        let history = (!self.is_pinned).then(pins::missing_history);
        let losses = [
            (Loss::ProcHidden, proc::trouble().is_some()),
            (
                Loss::LineageFull,
                self.lost_records > 0 || self.lost_tops().next().is_some(),
            ),
            (Loss::Unsettled, self.unsettled > 0),
            (Loss::MissedRuns, self.missed_forks > 0),
        ];
        let standing = losses.into_iter().filter(|(_, stands)| *stands);
        history
            .into_iter()
            .chain(standing.map(|(loss, _)| loss))
            .collect()
    }

    /// Returns the process that an identity names, dead or alive, with its exact start; `None`
    /// where there is no record of it.
    ///
    /// An identity that comes from `/proc` has its start rounded down to a clock tick, because
    /// nothing tells more without privileges. It names the process whose start is rounded to it,
    /// if that is one and can be the only one. Two processes have a pid within one tick only where
    /// all pids are given out meanwhile, in 10 ms: more than any kernel can where there are as many
    /// as usual. Where there are fewer, such an identity names nobody.
    #[must_use]
    pub fn exact(&self, id: ProcessId) -> Option<ProcessId> {
        self.exact_where(id, proc::has_many_pids)
    }

    fn exact_where(&self, id: ProcessId, has_many_pids: impl Fn() -> bool) -> Option<ProcessId> {
        let known = self.records.iter().map(|(known, _)| *known);
        let mut same = known.filter(|known| known.pid == id.pid);
        if same.clone().any(|known| known == id) {
            return Some(id);
        }
        if !is_to_a_tick(id) || !has_many_pids() {
            return None;
        }
        let mut rounded = same.by_ref().filter(|known| is_same_process(*known, id));
        let found = rounded.next();
        found.filter(|_| rounded.next().is_none())
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

    fn exact(starts: &[u64], start_ns: u64, has_many_pids: bool) -> Option<u64> {
        let records = starts
            .iter()
            .map(|start| (ProcessId::new(7, *start), Record::default()));
        let snapshot = Snapshot {
            records: records.collect(),
            ..Snapshot::default()
        };
        let found = snapshot.exact_where(ProcessId::new(7, start_ns), || has_many_pids);
        assert_eq!(
            snapshot.exact_where(ProcessId::new(8, start_ns), || true),
            None
        );
        found.map(|found| found.start_ns)
    }

    #[test]
    fn a_start_is_exact_or_that_of_the_one_process_that_is_rounded_to_it() {
        let (first, second) = (1_234_567_890, 1_240_000_001);
        assert_eq!(exact(&[first, second], first, true), Some(first));
        assert_eq!(exact(&[first, second], 1_230_000_000, true), Some(first));
        assert_eq!(exact(&[first, second], 1_240_000_000, true), Some(second));
        // Not a tick, so it is exact, and another's.
        assert_eq!(exact(&[first], 1_230_000_001, true), None);
        assert_eq!(exact(&[first], 1_220_000_000, true), None);
    }

    #[test]
    fn an_identity_that_names_two_or_may_name_two_names_nobody() {
        let in_one_tick = [1_234_567_890, 1_239_000_000];
        assert_eq!(exact(&in_one_tick, 1_230_000_000, true), None);
        assert_eq!(
            exact(&in_one_tick, in_one_tick[1], true),
            Some(in_one_tick[1])
        );
        assert_eq!(exact(&in_one_tick[..1], 1_230_000_000, false), None);
        assert_eq!(
            exact(&[1_230_000_000], 1_230_000_000, false),
            Some(1_230_000_000)
        );
        // A start that is not known is no tick.
        assert_eq!(exact(&[5_000], 0, true), None);
    }
}

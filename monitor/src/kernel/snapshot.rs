//! All records of the lineage at one time.

use lifemon_ebpf::{LIVE, ProcessId, Record};

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
            (Loss::LineageFull, self.lost_records > 0),
            (Loss::MissedRuns, self.missed_forks > 0),
        ];
        let standing = losses.into_iter().filter(|(_, stands)| *stands);
        history
            .into_iter()
            .chain(standing.map(|(loss, _)| loss))
            .collect()
    }

    /// Returns the process that an identity names, dead or alive, with its exact start; `None` where
    /// there is no record of it.
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! All records of the lineage at one time.

use lifemon_ebpf::{LIVE, ProcessId, Record};

use super::pins;
use crate::loss::Loss;
use crate::proc;

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

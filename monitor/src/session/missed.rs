//! Runs of the hooks that the kernel skipped, and the repair after them. The kernel skips a tracing
//! program that is already running on the processor, and counts that:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v6.12.118#n2320>.
//!
//! A skipped exit leaves a dead member counted as alive. Nothing false follows from that (the
//! counter does not under-count, so 0 is still the proof), but it must not stay so: when exits may
//! have been skipped lately, or the kernel has refused a hook to delete a membership, members that
//! have ended are settled by the kernel half, and the model is compared. What was settled is
//! reported; that something may have been is not. A skipped fork is a process without a record:
//! that is not recovered.

use std::time::Duration;

use tokio::time::Instant;

use super::Session;
use crate::kernel::Error;
use crate::loss::Loss;

/// Time for which members are looked at after an exit may have been skipped: a process with much
/// memory needs a while from its exit until it can be seen to be over.
const SETTLING: Duration = Duration::from_secs(2);

impl Session {
    /// Looks whether runs were skipped, and settles members that have died unseen.
    pub(super) fn check_missed_runs(&mut self) -> Result<(), Error> {
        let tracker = self.watcher.get_ref().tracker();
        let (forks, exits) = (tracker.missed_forks(), tracker.missed_exits());
        let failed = tracker.failed_deletes();
        let new_forks = forks.saturating_sub(self.seen.missed_forks);
        let new_exits = exits.saturating_sub(self.seen.missed_exits);
        self.seen.missed_forks = forks;
        self.seen.missed_exits = exits;
        if new_forks > 0 {
            self.has_missed_forks = true;
            self.lose(Loss::MissedRuns, new_forks, false);
        }
        let new_failed = failed.saturating_sub(self.seen.failed_deletes);
        self.seen.failed_deletes = failed;
        if new_exits > 0 || new_failed > 0 {
            self.settling_until = Some(Instant::now() + SETTLING);
        }
        let Some(until) = self.settling_until else {
            return Ok(());
        };
        let members = self.watcher.get_ref().live_members()?;
        let watcher = self.watcher.get_ref();
        let settled = watcher.tracker().settle(&members)? + watcher.settle_members()?;
        if settled > 0 {
            self.lose(Loss::MissedRuns, settled, false);
            self.resync()?;
            if !self.has_missed_forks {
                self.lose(Loss::MissedRuns, settled, true);
            }
        }
        if Instant::now() >= until {
            self.settling_until = None;
        }
        Ok(())
    }
}

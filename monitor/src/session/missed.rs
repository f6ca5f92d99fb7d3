//! Runs of the hooks that the kernel skipped.
//!
//! A skipped exit leaves a dead member counted as alive. Nothing false follows from that (the counter
//! does not under-count, so 0 is still the proof), but it must not stay so: while exits were skipped
//! lately, members that are over are settled by the kernel half, and the model is compared. A
//! skipped fork is a process that nobody knows of: that is not made good.

use std::time::Duration;

use tokio::time::Instant;

use super::{Loss, Session};
use crate::kernel::Error;

/// How long members are looked at after an exit was skipped: a process with much memory needs a while
/// from its exit until it can be seen to be over.
const SETTLING: Duration = Duration::from_secs(2);

/// Exits that were skipped, and are being made good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settling {
    until: Instant,
    exits: u64,
}

impl Session {
    /// Looks whether runs were skipped, and settles members that have died unseen.
    pub(super) fn check_missed_runs(&mut self) -> Result<(), Error> {
        let tracker = self.watcher.get_ref().tracker();
        let (forks, exits) = (tracker.missed_forks(), tracker.missed_exits());
        let new_forks = forks.saturating_sub(self.seen.missed_forks);
        let new_exits = exits.saturating_sub(self.seen.missed_exits);
        self.seen.missed_forks = forks;
        self.seen.missed_exits = exits;
        if new_forks > 0 {
            self.has_missed_forks = true;
        }
        if new_forks + new_exits > 0 {
            self.lose(Loss::MissedRuns, new_forks + new_exits, false);
        }
        if new_exits > 0 {
            let before = self.settling.map_or(0, |settling| settling.exits);
            self.settling = Some(Settling {
                until: Instant::now() + SETTLING,
                exits: before + new_exits,
            });
        }
        let Some(settling) = self.settling else {
            return Ok(());
        };
        let members = self.watcher.get_ref().live_members()?;
        if self.watcher.get_ref().tracker().settle(&members)? > 0 {
            self.resync()?;
        }
        if Instant::now() >= settling.until {
            self.end_settling();
        }
        Ok(())
    }

    /// Every skipped exit is made good by now.
    pub(super) fn end_settling(&mut self) {
        if let Some(settling) = self.settling.take()
            && !self.has_missed_forks
        {
            self.lose(Loss::MissedRuns, settling.exits, true);
        }
    }
}

//! The rate at which the kernel half may wake the watcher. A budget and nothing else.

use std::time::Duration;

use tokio::time::Instant;

/// Wakeups that may come in quick succession. A wakeup costs the dying process several
/// microseconds, so in a storm of deaths the ring is looked at every [`super::POLL`] instead: a
/// lone death is still reported at once.
const WAKEUPS: u32 = 64;

/// Time after which one more wakeup may come.
const WAKEUP_REFILL: Duration = Duration::from_millis(2);

/// The wakeups that may still come.
#[derive(Debug)]
pub(super) struct WakeupBudget {
    left: u32,
    refilled: Instant,
}

impl WakeupBudget {
    pub(super) fn new() -> Self {
        Self {
            left: WAKEUPS,
            refilled: Instant::now(),
        }
    }

    /// Takes one wakeup; returns whether there was one.
    pub(super) fn take(&mut self) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.refilled).as_nanos() / WAKEUP_REFILL.as_nanos();
        if earned > 0 {
            self.left = u32::try_from(earned).map_or(WAKEUPS, |earned| {
                WAKEUPS.min(self.left + earned.min(WAKEUPS))
            });
            self.refilled = now;
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

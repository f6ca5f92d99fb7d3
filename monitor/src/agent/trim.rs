//! Gives the memory back that answers have taken: a crowd of callers leaves no large process behind.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::sys::memory;

/// The pause between work and the giving back, and so between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether there was work since memory was last given back.
#[derive(Debug, Default)]
pub(super) struct Trim(Notify);

impl Trim {
    /// Notes that work has ended.
    pub(super) fn note(&self) {
        self.0.notify_one();
    }

    /// Gives memory back after work, at most once in a pause; while there is none, it has no timer.
    pub(super) async fn run(&self) {
        loop {
            self.0.notified().await;
            sleep(PAUSE).await;
            memory::give_back();
        }
    }
}

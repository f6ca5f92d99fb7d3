//! A server's life as a guard, for servers that end in two steps: they stop, then they finish.

use std::sync::Arc;

use super::{Finished, ProcessManager};

/// A server's life, from [`ProcessManager::lifespan`].
#[derive(Debug, Clone)]
pub struct Lifespan(pub(super) Arc<ProcessManager>);

impl Lifespan {
    /// Waits as [`ProcessManager::stop_asked`] does, for as long as this is not dropped.
    pub async fn stop_asked(self) {
        self.0.stop_asked().await;
    }

    /// Ends the workers as [`ProcessManager::shutdown`] does.
    pub async fn finish(self) -> Finished {
        self.0.shutdown().await
    }
}

//! A guard for the life of a server that ends in two steps: it stops, then it finishes.

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

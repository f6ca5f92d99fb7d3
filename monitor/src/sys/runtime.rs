//! The runtime that asynchronous work runs on here: on the thread that waits for it.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Returns a runtime of the present thread, with timers and descriptors.
///
/// # Errors
/// When the kernel gives no descriptors for it.
pub(crate) fn current_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

//! Ctrl-C and its like: they end a command, and what it has attached is given back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::kernel::lock;

/// SIGINT and SIGTERM, which end a command instead of the process: what was attached is given back.
pub(super) struct Interrupts {
    has_come: Arc<AtomicBool>,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Begins to listen. From here on they also end a wait for the lock of the tracker.
    pub(super) fn listen() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            signal_hook::flag::register(number, Arc::clone(&stop))?;
        }
        lock::stop_waiting_when(Arc::clone(&stop));
        Ok(Self {
            has_come: stop,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns whether one of them has come since the beginning.
    pub(super) fn have_come(&self) -> bool {
        self.has_come.load(Ordering::SeqCst)
    }

    /// Waits until one of them has come.
    ///
    /// Race: one may come while `listen` has begun with the flag and not with the streams, which
    /// would never tell. The flag does.
    pub(super) async fn next(&mut self) {
        if self.have_come() {
            return;
        }
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

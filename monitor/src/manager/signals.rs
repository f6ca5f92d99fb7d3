//! Signals that ask a server to end: the first is a request, the next one does not wait.
//!
//! Who has handled a signal once handles it for the life of the process: no handler is given back.
//! So they are served also when the monitor's work is done, or nobody could end a server that hangs
//! on its way out.

use std::io;
use std::process::exit;
use std::sync::LazyLock;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::state::{Shared, Stop};

/// Changes with each manager that handles signals. The newest outlives the others.
static NEWEST: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

pub(super) struct Signals {
    streams: Option<(Signal, Signal)>,
    has_received: bool,
    newer: watch::Receiver<()>,
}

impl Signals {
    /// Handles them from now on, if wanted. Inside a runtime.
    pub(super) fn register(wanted: bool) -> io::Result<Self> {
        let mut streams = None;
        if wanted {
            let terminate = signal(SignalKind::terminate())?;
            streams = Some((terminate, signal(SignalKind::interrupt())?));
            NEWEST.send_replace(());
        }
        Ok(Self {
            streams,
            has_received: false,
            newer: NEWEST.subscribe(),
        })
    }

    /// Waits for the next one; returns what it asks for. May be dropped and called again.
    pub(super) async fn recv(&mut self) -> Stop {
        match &mut self.streams {
            Some((terminate, interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            None => std::future::pending().await,
        }
        if std::mem::replace(&mut self.has_received, true) {
            Stop::Now
        } else {
            Stop::Graceful
        }
    }

    /// Serves them when nothing is left to end, for as long as the process lives or until a newer
    /// manager does.
    pub(super) async fn outlive(mut self, shared: &Shared) {
        if self.streams.is_none() {
            return;
        }
        let mut newer = self.newer.clone();
        loop {
            tokio::select! {
                stop = self.recv() => shared.take_signal(stop, Instant::now()),
                _ = newer.changed() => return,
            }
            if shared.change().stop == Stop::Now {
                end_process();
            }
        }
    }
}

/// Ends a server that was asked twice.
pub(super) fn end_process() -> ! {
    log::error!("asked twice to end: the workers were killed");
    exit(1);
}

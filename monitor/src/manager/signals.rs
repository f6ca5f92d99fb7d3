//! Signals that ask a server to end: the first is a request, the next one does not wait.
//!
//! Once a signal is handled it stays handled for the life of the process: tokio never removes a
//! handler. So signals are served even after the monitor has ended; otherwise a server that hangs
//! while it ends could not be ended by a signal.

use std::io;
use std::process::exit;
use std::sync::LazyLock;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::state::{Shared, Stop};

/// A value that changes with each manager that handles signals. The newest manager serves them.
static NEWEST: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

pub(super) struct Signals {
    streams: Option<(Signal, Signal)>,
    has_received: bool,
    newer: watch::Receiver<()>,
}

impl Signals {
    /// Handles the signals from now on, if wanted. Must be called inside a tokio runtime.
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

    /// Waits for the next signal; returns what it asks for. Is cancel-safe.
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

    /// Serves signals after all workers have ended, until a newer manager does.
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

/// Ends a server that was asked to end twice.
pub(super) fn end_process() -> ! {
    log::error!("asked twice to end: the workers were killed");
    exit(1);
}

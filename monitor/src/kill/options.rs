//! How a tree is killed: what the caller may choose.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifemon_ebpf::ProcessId;

use super::envoy::Envoy;
use super::suspects::Suspects;
use crate::gpu::holders::DeviceFiles;
use crate::process::Signal;

/// The default duration of a kill.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a kill. The default kills at once and goes on for 30 s.
///
/// ```
/// use std::time::Duration;
///
/// use lifemon::{KillOptions, Signal};
///
/// // Lets everything end by itself for ten seconds.
/// let options = KillOptions::new()
///     .first_signal(Signal::TERM)
///     .grace(Duration::from_secs(10));
/// ```
#[derive(Debug, Clone)]
pub struct KillOptions {
    pub(crate) first_signal: Option<Signal>,
    pub(crate) grace: Duration,
    pub(crate) timeout: Duration,
    /// These alone are spared.
    pub(crate) protected: Vec<ProcessId>,
    /// These are spared with what they have created; known exactly, or to a clock tick.
    pub(crate) spared: Vec<ProcessId>,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
    pub(crate) suspects: Suspects,
    pub(crate) release: Option<ReleaseOptions>,
    /// Who sends the signals; `None` for this process, with its own rights.
    pub(crate) envoy: Option<Arc<dyn Envoy>>,
}

/// Options of the wait for the release of GPU memory.
#[derive(Debug, Clone)]
pub(crate) struct ReleaseOptions {
    /// The `lifemon` binary, which asks the driver in a process of its own.
    pub(crate) program: PathBuf,
    /// The longest wait.
    pub(crate) timeout: Duration,
    /// The device files that count as GPUs.
    pub(crate) files: DeviceFiles,
}

impl Default for KillOptions {
    fn default() -> Self {
        Self {
            first_signal: None,
            grace: Duration::ZERO,
            timeout: TIMEOUT,
            protected: Vec::new(),
            spared: Vec::new(),
            dry_run: false,
            force: false,
            suspects: Suspects::Report,
            release: None,
            envoy: None,
        }
    }
}

impl KillOptions {
    /// Returns the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends this to every member first, to let it end by itself.
    #[must_use]
    pub const fn first_signal(mut self, signal: Signal) -> Self {
        self.first_signal = Some(signal);
        self
    }

    /// Sets how long to wait after the first signal.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how long to go on killing.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Protects this process and what it creates from the kill. The calling process is always
    /// spared.
    #[must_use]
    pub fn protect(mut self, id: ProcessId) -> Self {
        self.protected.push(id);
        self
    }

    /// Reports what would die, and kills nobody.
    #[must_use]
    pub const fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Kills also a tree that this process descends from.
    #[must_use]
    pub const fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Leaves suspects alone: the kill is done although there are some.
    #[must_use]
    pub const fn accept_suspects(mut self) -> Self {
        self.suspects = Suspects::Accept;
        self
    }

    /// Kills suspects with the tree, and everything below them.
    #[must_use]
    pub const fn kill_suspects(mut self) -> Self {
        self.suspects = Suspects::Kill;
        self
    }

    /// Waits so long until the GPU memory of the killed is released. `lifemon` is the path of the
    /// binary, which asks the driver in a process of its own: the driver can hang.
    #[must_use]
    pub fn wait_until_released(mut self, lifemon: impl Into<PathBuf>, timeout: Duration) -> Self {
        self.release = Some(ReleaseOptions {
            program: lifemon.into(),
            timeout,
            files: DeviceFiles::default(),
        });
        self
    }

    /// Returns the first signal as it is sent.
    pub(super) fn standard_signal(&self) -> Result<Option<nix::sys::signal::Signal>, Signal> {
        let first = self
            .first_signal
            .map(|signal| signal.standard().ok_or(signal));
        first.transpose()
    }
}

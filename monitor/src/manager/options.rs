//! The options of a manager. The defaults are those of the Python module.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::orphans::Scope;
use crate::gpu::holders::DeviceFiles;

/// The condition that ends monitoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Every worker is dead.
    #[default]
    AllDead,
    /// At least one worker is dead.
    AnyDead,
}

impl Policy {
    /// Returns whether monitoring ends when `dead` of `workers` are dead.
    #[must_use]
    pub const fn has_ended(self, dead: usize, workers: usize) -> bool {
        match self {
            Self::AllDead => workers > 0 && dead == workers,
            Self::AnyDead => dead > 0,
        }
    }
}

/// A worker to start. Its standard streams are those of the server.
#[derive(Debug, Clone, Default)]
pub struct WorkerCommand {
    pub(super) words: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) directory: Option<PathBuf>,
}

impl WorkerCommand {
    /// Runs this program, found as the shell finds it.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            words: vec![program.into()],
            ..Self::default()
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }
}

/// The options of a manager. Every field has the default of the Python module.
#[derive(Debug, Clone)]
pub struct Options {
    /// The workers.
    pub(super) workers: Vec<WorkerCommand>,
    /// Parts of command lines of orphans to clean up at the end. Everything below this manager's
    /// guardian is killed in any case, so they matter for [`Scope::DeadServers`].
    pub(super) orphan_patterns: Vec<String>,
    /// The trees whose orphans those patterns apply to.
    pub(super) orphan_scope: Scope,
    /// Polling interval where events are not available. Deaths of workers do not wait for it.
    pub(super) monitor_interval: Duration,
    /// Time that workers have after the shutdown message.
    pub(super) shutdown_timeout: Duration,
    /// Time that workers have after SIGTERM.
    pub(super) kill_timeout: Duration,
    /// The condition that ends monitoring.
    pub(super) policy: Policy,
    /// If set, SIGTERM and SIGINT ask for the shutdown, and a second one for an immediate end, for
    /// the whole life of the process, even after the manager was dropped.
    pub(super) signals: bool,
    /// If set, the tracker is used where possible.
    pub(super) use_ebpf: bool,
    /// Device files that count as GPUs in the health status.
    pub(super) devices: DeviceFiles,
    /// The name of the workers in messages.
    pub(super) label: String,
    /// The program that becomes the guardian: this one, unless given. It must call
    /// [`super::run_if_asked`] first; `lifemon` does.
    pub(super) guardian: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: Vec::new(),
            orphan_patterns: vec!["VLLM::EngineCore".to_owned()],
            orphan_scope: Scope::default(),
            monitor_interval: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(30),
            kill_timeout: Duration::from_secs(15),
            policy: Policy::default(),
            signals: true,
            use_ebpf: true,
            devices: DeviceFiles::default(),
            label: "vLLM".to_owned(),
            guardian: PathBuf::from(crate::proc::OWN_PROGRAM),
        }
    }
}

impl Options {
    /// Returns the defaults, and these workers.
    pub fn new(workers: impl IntoIterator<Item = WorkerCommand>) -> Self {
        Self {
            workers: workers.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Adds a worker.
    #[must_use]
    pub fn worker(mut self, worker: WorkerCommand) -> Self {
        self.workers.push(worker);
        self
    }

    /// Sets parts of command lines of orphans to clean up at the end. Everything below this
    /// manager's guardian is killed in any case, so they matter for [`Scope::DeadServers`].
    #[must_use]
    pub fn orphan_patterns(
        mut self,
        patterns: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.orphan_patterns = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Sets whose orphans those patterns are for.
    #[must_use]
    pub fn orphan_scope(mut self, scope: Scope) -> Self {
        self.orphan_scope = scope;
        self
    }

    /// Sets how often to look where events are not available (5 s). Deaths of workers do not wait
    /// for it.
    #[must_use]
    pub fn monitor_interval(mut self, interval: Duration) -> Self {
        self.monitor_interval = interval;
        self
    }

    /// Sets how long workers may take after the shutdown message (30 s).
    #[must_use]
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets how long workers may take after SIGTERM (15 s).
    #[must_use]
    pub fn kill_timeout(mut self, timeout: Duration) -> Self {
        self.kill_timeout = timeout;
        self
    }

    /// Sets when monitoring ends ([`Policy::AllDead`]).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets whether SIGTERM and SIGINT ask for the shutdown, and a second one for an immediate end
    /// (they do): for as long as the process lives, also when the manager is gone.
    #[must_use]
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Sets whether the tracker is used where it can be (it is).
    #[must_use]
    pub fn use_ebpf(mut self, use_ebpf: bool) -> Self {
        self.use_ebpf = use_ebpf;
        self
    }

    /// Sets which device files count as GPUs in the health status.
    #[must_use]
    pub fn devices(mut self, devices: DeviceFiles) -> Self {
        self.devices = devices;
        self
    }

    /// Sets what the workers are called in messages.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the program that becomes the guardian: this one, unless given. It must call
    /// [`run_if_asked`](super::run_if_asked) first; `lifemon` does.
    #[must_use]
    pub fn guardian(mut self, program: impl Into<PathBuf>) -> Self {
        self.guardian = program.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_module_that_this_replaces() {
        let options = Options::default();
        assert_eq!(options.orphan_patterns, ["VLLM::EngineCore"]);
        assert_eq!(options.monitor_interval, Duration::from_secs(5));
        assert_eq!(options.shutdown_timeout, Duration::from_secs(30));
        assert_eq!(options.kill_timeout, Duration::from_secs(15));
        assert_eq!(options.policy, Policy::AllDead);
    }

    #[test]
    fn a_policy_counts_the_dead() {
        assert!(!Policy::AllDead.has_ended(1, 2) && Policy::AllDead.has_ended(2, 2));
        assert!(Policy::AnyDead.has_ended(1, 2) && !Policy::AnyDead.has_ended(0, 2));
        assert!(!Policy::AllDead.has_ended(0, 0));
    }
}

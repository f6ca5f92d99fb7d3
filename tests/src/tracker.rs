//! The host's tracker for the length of one test: alone on the host while it lives, switched off
//! when it is dropped, and then nothing may be left of it.

use std::process::Command;

use serde::de::DeserializeOwned;

use crate::DEADLINE;
use crate::bpf::Traces;
use crate::lifemon::{Lifemon, Output};
use crate::lock::{HostLock, host_lock};
use crate::reports::{TrackState, TrackStatus, TrackSwitch};

/// The right to switch the host's tracker, which is off at first.
#[derive(Debug)]
pub struct HostTracker {
    before: Traces,
    _lock: HostLock,
}

impl HostTracker {
    /// Waits for the lock; what a test that was killed has left is switched off.
    ///
    /// # Panics
    /// When it cannot be switched off.
    #[must_use]
    #[track_caller]
    pub fn off() -> Self {
        let lock = host_lock();
        let off = Self::track(&["off"]);
        assert_eq!(off.code, Some(0), "{off:?}");
        Self {
            before: Traces::now(),
            _lock: lock,
        }
    }

    /// Does the same, and switches it on with these options.
    ///
    /// # Panics
    /// When it cannot be switched on.
    #[must_use]
    #[track_caller]
    pub fn on(options: &[&str]) -> Self {
        let tracker = Self::off();
        let on = tracker.switch_on(options);
        assert!(on.changed, "{on:?}");
        tracker
    }

    /// Runs `track on`, which must succeed; returns what it printed.
    ///
    /// # Panics
    /// When it fails, or says anything on stderr.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "what it says matters to few tests"
    )]
    pub fn switch_on(&self, options: &[&str]) -> TrackSwitch {
        Self::succeed(&[&["on"], options].concat())
    }

    /// Runs `track off`, which must succeed; returns what it printed.
    ///
    /// # Panics
    /// As [`HostTracker::switch_on`].
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "what it says matters to few tests"
    )]
    pub fn switch_off(&self) -> TrackSwitch {
        Self::succeed(&["off"])
    }

    /// Returns `track status` of a tracker that is on.
    ///
    /// # Panics
    /// As [`HostTracker::switch_on`].
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> TrackStatus {
        Self::succeed::<TrackState>(&["status"]).on()
    }

    /// Runs `track status`, whatever it says.
    #[track_caller]
    #[must_use]
    pub fn ask_status(&self) -> Output {
        Self::track(&["status"])
    }

    /// Returns what there was of BPF before it was switched on.
    #[must_use]
    pub fn before(&self) -> &Traces {
        &self.before
    }

    #[track_caller]
    fn succeed<T: DeserializeOwned>(words: &[&str]) -> T {
        Self::track(words).success()
    }

    #[track_caller]
    fn track(words: &[&str]) -> Output {
        Lifemon::find().run([&["track", "-o", "json"], words].concat())
    }
}

/// Runs a command that the test has changed to its end, with nothing of lifemon in the kernel
/// before, and nothing after.
///
/// # Panics
/// When it does not end within the default deadline, or leaves something.
#[track_caller]
pub fn run_alone(lifemon: &Lifemon, words: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let _host = HostTracker::off();
    let mut command = lifemon.command(words);
    command.env("RUST_BACKTRACE", "1");
    change(&mut command);
    lifemon.start(command).finish(DEADLINE)
}

impl Drop for HostTracker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let off = Self::track(&["off"]);
            return eprintln!("switched off after a failure: {off:?}");
        }
        self.switch_off();
        self.before.assert_nothing_since();
    }
}

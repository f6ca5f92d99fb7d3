//! A control group whose processes do not move, not even to die: the freezer of version 1. A frozen
//! group of version 2 lets SIGKILL through, so it is no substitute.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::wait::poll;
use crate::{DEADLINE, Process};

/// Where the hierarchy is mounted on every host that has one.
const MOUNT: &str = "/sys/fs/cgroup/freezer";

/// Thaws its processes, moves them back and removes itself on drop.
#[derive(Debug)]
pub struct Freezer(PathBuf);

impl Freezer {
    /// Makes a group with nobody in it; `None` on a host without this hierarchy.
    ///
    /// # Panics
    /// When the group cannot be made.
    #[must_use]
    pub fn new() -> Option<Self> {
        Self::named("")
    }

    /// The same, with these characters in its name.
    ///
    /// # Panics
    /// When the group cannot be made.
    #[must_use]
    pub fn named(characters: &str) -> Option<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        if !Path::new(MOUNT).join("cgroup.procs").exists() {
            eprintln!("skipped: this host has no freezer of cgroup version 1");
            return None;
        }
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lifemon-test-{}-{count}{characters}", std::process::id());
        let path = Path::new(MOUNT).join(name);
        // What an earlier process of our number has left, if it was killed.
        _ = fs::remove_dir(&path);
        fs::create_dir(&path).expect("a freezer group (it needs root)");
        Some(Self(path))
    }

    /// Takes the process in and freezes it.
    ///
    /// # Panics
    /// When that does not succeed.
    #[track_caller]
    pub fn freeze(&self, process: Process) {
        let pid = process.pid.to_string();
        fs::write(self.0.join("cgroup.procs"), pid).expect("a process that can be moved");
        fs::write(self.state(), "FROZEN").expect("a freezer");
        let is_frozen = || {
            let state = fs::read_to_string(self.state()).expect("a freezer");
            (state.trim() == "FROZEN").then_some(())
        };
        poll(DEADLINE, is_frozen).expect("a frozen group");
    }

    /// Lets all of them go on.
    ///
    /// # Panics
    /// When that does not succeed.
    #[track_caller]
    pub fn thaw(&self) {
        fs::write(self.state(), "THAWED").expect("a freezer");
    }

    fn state(&self) -> PathBuf {
        self.0.join("freezer.state")
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        _ = fs::write(self.state(), "THAWED");
        let removed = poll(DEADLINE, || {
            let pids = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines() {
                // It may have died, which is as good.
                _ = fs::write(Path::new(MOUNT).join("cgroup.procs"), pid);
            }
            fs::remove_dir(&self.0).ok()
        });
        if removed.is_none() {
            eprintln!("{} was not removed", self.0.display());
        }
    }
}

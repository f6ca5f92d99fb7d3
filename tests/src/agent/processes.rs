//! The processes that an agent is asked about: sleepers of users, in the sandbox and in containers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::Caller;
use crate::wait::{poll, wait_until};
use crate::{DEADLINE, Sandbox, proc};

/// Returns the pids in the sandbox, each once.
#[must_use]
pub fn pids(sandbox: &Sandbox) -> BTreeSet<i32> {
    sandbox.pids().into_iter().collect()
}

/// Returns the name of a process.
#[must_use]
pub fn name(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// A process of somebody that only sleeps; killed on drop.
#[derive(Debug)]
pub struct Sleeper {
    child: Child,
}

impl Sleeper {
    /// Starts one in the sandbox.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(sandbox: &Sandbox, of: &Caller) -> Self {
        Self::run(sandbox, of, &["sleep", "600"], "sleep")
    }

    /// Starts this command, and waits until the process has this name.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn run(sandbox: &Sandbox, of: &Caller, words: &[&str], name: &str) -> Self {
        let mut command = of.command(words);
        command.stdout(Stdio::null());
        sandbox.enter(&mut command);
        let child = command.spawn().expect("it starts");
        let pid = child.id().cast_signed();
        wait_until("it runs", DEADLINE, || {
            self::name(pid).as_deref() == Some(name)
        });
        Self { child }
    }

    /// Returns its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Returns its name in requests.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(self.pid())
    }

    /// Returns whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, and nobody else.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the name of a process in requests: its start is exact to a clock tick.
///
/// # Panics
/// When there is no such process.
#[must_use]
#[track_caller]
pub fn name_of(pid: i32) -> String {
    let stat = proc::stat(pid).expect("it lives");
    format!("{pid}@{}", stat.start_ticks * 10_000_000)
}

/// A control group whose name is that of a container; removed on drop, with what is in it.
#[derive(Debug)]
pub struct Container(PathBuf);

impl Container {
    /// Makes one in the sandbox.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(sandbox: &Sandbox) -> Self {
        let id = format!("{:064x}", std::process::id());
        let path = sandbox.paths()[0].join(format!("docker-{id}.scope"));
        fs::create_dir(&path).expect("a control group in the sandbox's");
        Self(path)
    }

    /// Returns its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = poll(Duration::from_secs(10), || {
            let _ = fs::write(self.0.join("cgroup.kill"), "1");
            fs::remove_dir(&self.0).ok()
        });
        if removed.is_none() {
            eprintln!("{} was not removed", self.0.display());
        }
    }
}

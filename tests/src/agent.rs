//! An agent in a sandbox, with sockets of its own, and callers of it: other users, other
//! namespaces, other capabilities, a container's control group ([`Caller`]).

mod caller;
mod processes;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lifemon::{Lifemon, Running};
use crate::wait::poll;
use crate::{DEADLINE, Sandbox};
pub use caller::{Answer, Caller, python_for_all};
pub use processes::{Container, Sleeper, name, name_of, pids};

/// Time for an agent to listen.
const START: Duration = Duration::from_secs(20);

/// The group whose members may see, for agents of tests, and its number.
pub const READERS: (&str, u32) = ("games", 60);
/// The group whose members may end, for agents of tests, and its number.
pub const KILLERS: (&str, u32) = ("users", 100);

/// A running agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    directory: PathBuf,
    /// Words before its own: who starts it.
    before: Vec<String>,
    options: Vec<String>,
    running: Option<Running>,
}

impl Agent {
    /// Starts one, with its sockets in the sandbox's directory.
    ///
    /// # Panics
    /// When it does not listen in time.
    #[must_use]
    #[track_caller]
    pub fn start(sandbox: &Sandbox, options: &[&str]) -> Self {
        Self::started(sandbox, &[], options)
    }

    /// Starts one in the mount namespace of this process, from which it is started again, too.
    ///
    /// # Panics
    /// As [`Agent::start`].
    #[must_use]
    #[track_caller]
    pub fn start_in(sandbox: &Sandbox, mounts_of: i32) -> Self {
        let pid = mounts_of.to_string();
        Self::started(sandbox, &["nsenter", "--mount", "--target", &pid], &[])
    }

    #[track_caller]
    fn started(sandbox: &Sandbox, before: &[&str], options: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut agent = Self {
            directory: sandbox.directory().join("run"),
            before: owned(before),
            options: owned(options),
            running: None,
        };
        agent.start_again();
        agent
    }

    /// Starts it, after it has ended.
    ///
    /// # Panics
    /// When it does not listen in time.
    #[track_caller]
    pub fn start_again(&mut self) {
        let directory = self.directory.display().to_string();
        let words = [
            "agent",
            "--runtime-dir",
            &directory,
            "--read-group",
            READERS.0,
            "--kill-group",
            KILLERS.0,
        ];
        // What one before it has left would be taken for this one's.
        let _ = fs::remove_file(self.socket());
        let words = words.iter().copied();
        let lifemon = Lifemon::find();
        let mut command = lifemon.command(words.chain(self.options.iter().map(String::as_str)));
        if let [first, others @ ..] = self.before.as_slice() {
            let mut outer = Command::new(first);
            outer.args(others).arg(command.get_program());
            outer.args(command.get_args()).stdin(Stdio::null());
            outer.stdout(Stdio::piped()).stderr(Stdio::piped());
            command = outer;
        }
        command.process_group(0);
        let running = lifemon.start(command);
        let socket = self.socket();
        let listens = poll(START, || {
            std::os::unix::net::UnixStream::connect(&socket)
                .ok()
                .map(drop)
        });
        assert!(listens.is_some(), "no agent: {}", running.stderr_so_far());
        self.running = Some(running);
    }

    /// Returns the path of its main socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("lifemon.sock")
    }

    /// Returns its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the pid of the core.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.as_ref().expect("it runs").pid()
    }

    /// Returns the pids of its fronts.
    #[must_use]
    pub fn fronts(&self) -> Vec<i32> {
        let mut children = self.children();
        children.retain(|pid| name(*pid).as_deref() == Some("lifemon-front"));
        children
    }

    /// Returns the pids of what asks a driver for it at this moment.
    #[must_use]
    pub fn helpers(&self) -> Vec<i32> {
        let mut children = self.children();
        children.retain(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words
                .split(|byte| *byte == 0)
                .any(|word| word == b"nvml-server")
        });
        children
    }

    /// Returns what its threads have started.
    fn children(&self) -> Vec<i32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let threads = threads.into_iter().flatten().flatten();
        let read = |path: PathBuf| fs::read_to_string(path.join("children")).unwrap_or_default();
        let lines: Vec<_> = threads.map(|thread| read(thread.path())).collect();
        let words = lines.iter().flat_map(|line| line.split_whitespace());
        words.filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Kills it as nothing else could.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.running.take().expect("it runs").kill();
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// When it does not end well.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.signal(Signal::SIGTERM);
        let output = running.finish(DEADLINE);
        assert_eq!(output.code, Some(0), "{output:?}");
    }

    /// Returns what it has written on standard error so far.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.running.as_ref().expect("it runs").stderr_so_far()
    }

    /// Returns the lines of its log so far.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let text = self.stderr();
        let lines = text.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

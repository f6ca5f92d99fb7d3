//! An agent in a sandbox, with sockets of its own, and callers of it: other users, other
//! namespaces, other capabilities, a container's control group. A caller is a `curl`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lifemon::{Lifemon, Running};
use crate::wait::{poll, wait_until};
use crate::{DEADLINE, Sandbox, proc};

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

    /// Returns the lines of its log so far.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let text = self.running.as_ref().expect("it runs").stderr_so_far();
        let lines = text.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// Returns a Python that every user may run, and says so where there is none: one below root's
/// directory is root's alone.
#[must_use]
pub fn python_for_all() -> Option<String> {
    let words = [
        "sh",
        "-c",
        "for p in /usr/bin/python3 /usr/local/bin/python3; do \
        $p -c 'import http.client, json' 2> /dev/null && echo $p && exit; done",
    ];
    let output = Caller::user(65_533, &[]).command(&words).output().ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if path.is_empty() {
        println!("skipped: no python3 for every user");
        return None;
    }
    Some(path)
}

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

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its media type.
    pub kind: String,
    /// Its body.
    pub text: String,
}

impl Answer {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Claims this status, and returns the body.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// Claims a problem document with this code.
    ///
    /// # Panics
    /// When it is none, or another.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) {
        let problem = self.expect(status);
        assert_eq!(self.kind, "application/problem+json", "{self:?}");
        assert_eq!(problem["code"], code, "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    before: Vec<String>,
    ids: Vec<String>,
}

impl Caller {
    /// Returns root as the tests are.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Returns a user, with these groups.
    #[must_use]
    pub fn user(uid: u32, groups: &[u32]) -> Self {
        let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        let ids = ["setpriv", "--reuid", &uid.to_string(), "--regid"]
            .iter()
            .map(|word| (*word).to_owned())
            .chain([uid.to_string(), groups])
            .collect();
        Self {
            before: Vec::new(),
            ids,
        }
    }

    /// Puts it into namespaces of its own: options of `unshare`.
    #[must_use]
    pub fn unshared(mut self, options: &[&str]) -> Self {
        self.before.push("unshare".to_owned());
        self.before
            .extend(options.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Takes capabilities from it, which is root: `kill`, `sys_ptrace`.
    #[must_use]
    pub fn without(mut self, capabilities: &[&str]) -> Self {
        let less: Vec<_> = capabilities.iter().map(|name| format!("-{name}")).collect();
        let less = less.join(",");
        self.before.push("setpriv".to_owned());
        self.before.push(format!("--inh-caps={less}"));
        self.before.push(format!("--bounding-set={less}"));
        self
    }

    /// Puts it into a control group first.
    #[must_use]
    pub fn within(mut self, group: &Path) -> Self {
        let join = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", group.display());
        let words = ["sh".to_owned(), "-c".to_owned(), join, "sh".to_owned()];
        self.before.splice(0..0, words);
        self
    }

    /// Returns a command that runs these words as this caller.
    ///
    /// # Panics
    /// Without words.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let all = self.before.iter().chain(&self.ids).map(String::as_str);
        let all: Vec<_> = all.chain(words.iter().copied()).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).stdin(Stdio::null());
        command
    }

    /// Asks, and waits for the answer.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn ask(&self, agent: &Agent, method: &str, path: &str, more: &[&str]) -> Answer {
        let socket = agent.socket().display().to_string();
        let url = format!("http://lifemon{path}");
        let words = [
            "curl",
            "-sS",
            "--max-time",
            "40",
            "--unix-socket",
            &socket,
            "-X",
            method,
            "-w",
            "\n%{http_code} %{content_type}",
            &url,
        ];
        let words: Vec<_> = words.iter().chain(more).copied().collect();
        let mut command = self.command(&words);
        let output = command.stderr(Stdio::piped()).output().expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = text.rsplit_once('\n').unwrap_or_default();
        let (status, kind) = last.split_once(' ').unwrap_or_default();
        Answer {
            status: status.parse().unwrap_or_else(|_| panic!("{output:?}")),
            kind: kind.to_owned(),
            text: body.to_owned(),
        }
    }

    /// Gets a resource.
    ///
    /// # Panics
    /// As [`Caller::ask`].
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn get(&self, agent: &Agent, path: &str) -> Answer {
        self.ask(agent, "GET", path, &[])
    }

    /// Sends an object.
    ///
    /// # Panics
    /// As [`Caller::ask`].
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn post(&self, agent: &Agent, path: &str, body: &Value) -> Answer {
        self.ask(agent, "POST", path, &["-d", &body.to_string()])
    }
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

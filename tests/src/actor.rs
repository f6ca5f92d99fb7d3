//! An actor process in a sandbox: started, told what to do, listened to, and ended by the handle
//! that owns it. What the behaviours are is in `src/bin/actor`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::wait::poll;
use crate::{DEADLINE, JsonLines, Sandbox};

/// Starts a behaviour in a sandbox: `actor!(sandbox, "fork-wait", 3, 7)`. A macro because cargo
/// tells the path of the program to integration tests alone.
#[macro_export]
macro_rules! actor {
    ($sandbox:expr, $($word:expr),+ $(,)?) => {
        $crate::Actor::spawn(
            ::std::path::Path::new(env!("CARGO_BIN_EXE_actor")),
            &$sandbox,
            &[$($word.to_string()),+],
        )
    };
}

/// A process as an actor reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// In the pid namespace of the tests.
    pub pid: i32,
    /// Field 22 of its stat line; with the pid, its identity.
    pub start_ticks: u64,
}

/// A running actor; killed on drop, its descendants with the sandbox.
#[derive(Debug)]
pub struct Actor {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: JsonLines,
    process: Process,
}

impl Actor {
    /// Starts the program with the behaviour and its arguments, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start or is not ready in time.
    #[must_use]
    pub fn spawn(program: &Path, sandbox: &Sandbox, words: &[String]) -> Self {
        let mut command = Command::new(program);
        command
            .args(words)
            // What one that is killed leaves there goes with the sandbox.
            .env("TMPDIR", sandbox.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        sandbox.enter(&mut command);
        let mut child = command.spawn().expect("actor program");
        let stdout = child.stdout.take().expect("piped");
        let mut actor = Self {
            stdin: child.stdin.take(),
            lines: JsonLines::read(format!("actor {}", words.join(" ")), stdout),
            process: Process {
                pid: child.id().cast_signed(),
                start_ticks: 0,
            },
            child,
        };
        let ready = actor.wait_for("ready", |line| line["ready"] == true);
        actor.process = process(&ready, "pid").expect("pid and start_ticks in the ready line");
        actor
    }

    /// Returns the actor's own pid, its root of whatever it makes.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Returns the actor's own identity.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process
    }

    /// Returns the next line that it has not been asked for yet.
    ///
    /// # Panics
    /// When none comes within the default deadline.
    #[track_caller]
    pub fn line(&mut self) -> Value {
        self.lines
            .next(DEADLINE)
            .unwrap_or_else(|| self.lines.missing("another line"))
    }

    /// Returns the first line that fits, seen already or still to come.
    ///
    /// # Panics
    /// When none comes within the default deadline.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.lines.wait_for(what, DEADLINE, fits)
    }

    /// Returns every line read so far, in order.
    #[must_use]
    pub fn seen(&self) -> &[Value] {
        self.lines.seen()
    }

    /// Returns the first process that was reported in this role.
    ///
    /// # Panics
    /// When none is within the default deadline.
    #[track_caller]
    pub fn child(&mut self, role: &str) -> Process {
        let line = self.wait_for(role, |line| line["role"] == role);
        process(&line, "child").expect("child and start_ticks in a child's line")
    }

    /// Returns every process reported in this role so far, in order.
    #[must_use]
    pub fn children(&self, role: &str) -> Vec<Process> {
        let lines = self.lines.seen().iter().filter(|line| line["role"] == role);
        lines.filter_map(|line| process(line, "child")).collect()
    }

    /// Returns how this process ended, as its parent saw it: the line `{"reaped":PID,...}`.
    ///
    /// # Panics
    /// When it is not reaped within the default deadline.
    #[track_caller]
    pub fn reaped(&mut self, pid: i32) -> Value {
        self.wait_for("a child reaped", |line| line["reaped"] == pid)
    }

    /// Writes one line to it.
    ///
    /// # Panics
    /// When it no longer reads, or its stdin was closed.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").expect("the actor reads its stdin");
    }

    /// Tells it to take its next step, and waits until that is done.
    ///
    /// # Panics
    /// When it reports an error, or is not done within the default deadline.
    #[track_caller]
    pub fn step(&mut self) {
        self.command("go");
    }

    /// Sends a command and waits until it has been carried out.
    ///
    /// # Panics
    /// As [`Actor::step`].
    #[track_caller]
    pub fn command(&mut self, line: &str) {
        self.send(line);
        self.finish_step();
    }

    /// Waits for the end of a step that was begun with [`Actor::send`].
    ///
    /// # Panics
    /// As [`Actor::step`].
    #[track_caller]
    pub fn finish_step(&mut self) {
        loop {
            let line = self.line();
            assert!(line.get("error").is_none(), "the actor failed: {line}");
            if line["done"] == true {
                return;
            }
        }
    }

    /// Returns why the behaviour is impossible on this host, when it is.
    #[must_use]
    pub fn skipped(&self) -> Option<String> {
        self.lines
            .seen()
            .iter()
            .find_map(|line| Some(line["skip"].as_str()?.to_owned()))
    }

    /// Closes its stdin, which makes it exit with 0.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end and reaps it. Its stdin stays open.
    ///
    /// # Panics
    /// When it does not end within the default deadline.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let ended = poll(DEADLINE, || {
            self.child.try_wait().expect("wait for the actor")
        });
        ended.unwrap_or_else(|| self.lines.missing("its end"))
    }

    /// Sends SIGKILL to the actor alone, and reaps it.
    ///
    /// # Panics
    /// When it does not die within the default deadline.
    #[track_caller]
    pub fn kill(&mut self) -> ExitStatus {
        // Not reaped yet, or the handle knows: the number cannot belong to anybody else.
        self.child.kill().expect("kill the actor");
        self.wait()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Both only fail when it was reaped, which is what they are for.
        _ = self.child.kill();
        _ = poll(Duration::from_secs(5), || {
            self.child.try_wait().ok().flatten()
        });
    }
}

fn process(line: &Value, key: &str) -> Option<Process> {
    let pid = i32::try_from(line[key].as_i64()?).ok()?;
    Some(Process {
        pid,
        start_ticks: line["start_ticks"].as_u64()?,
    })
}

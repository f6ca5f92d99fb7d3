//! The lifemon program under test, run to its end (`run`) or as a stream of events (`stream`).
//! Its path is `LIFEMON_BIN`, or the build directory that the tests lie in.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::wait::poll;
use crate::{DEADLINE, Sandbox, Stream};

/// How long output may trail the end of the process: its descendants can hold the pipe.
const TRAILING: Duration = Duration::from_secs(5);

/// How to run the program under test.
#[derive(Debug)]
pub struct Lifemon<'sandbox> {
    program: PathBuf,
    deadline: Duration,
    sandbox: Option<&'sandbox Sandbox>,
}

impl<'sandbox> Lifemon<'sandbox> {
    /// Finds the program.
    ///
    /// # Panics
    /// When neither `LIFEMON_BIN` nor the build directory has one.
    #[must_use]
    pub fn find() -> Self {
        let program = std::env::var_os("LIFEMON_BIN").map_or_else(beside_the_tests, PathBuf::from);
        assert!(
            program.is_file(),
            "no lifemon at {}; build it first",
            program.display()
        );
        Self::at(program)
    }

    /// Uses this program.
    #[must_use]
    pub fn at(program: PathBuf) -> Self {
        Self {
            program,
            deadline: DEADLINE,
            sandbox: None,
        }
    }

    /// Returns the program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Sets another limit on how long `run` may take.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Puts lifemon itself in the sandbox: for `lifemon run`, whose command must not get out.
    #[must_use]
    pub fn inside(mut self, sandbox: &'sandbox Sandbox) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it does not start, or does not end before the deadline (it is killed then).
    #[track_caller]
    pub fn run<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Output {
        self.start(self.command(words)).finish(self.deadline)
    }

    /// Starts a command of [`Lifemon::command`] that the test has changed.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn start(&self, mut command: Command) -> Running {
        let mut child = command.spawn().expect("lifemon starts");
        Running {
            what: format!("{command:?}"),
            stdout: child.stdout.take().map(Collector::read),
            stderr: child.stderr.take().map(Collector::read),
            child,
        }
    }

    /// Starts it, to read its events while it runs.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn stream<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Stream {
        self.stream_of(self.command(words))
    }

    /// Does the same with a command of [`Lifemon::command`] that the test has changed.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn stream_of(&self, mut command: Command) -> Stream {
        let child = command.spawn().expect("lifemon starts");
        Stream::new(format!("{command:?}"), child)
    }

    /// Starts `attach` on a target as JSON, with these options.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn attach(&self, target: &impl ToString, options: &[&str]) -> Stream {
        let target = target.to_string();
        let words = ["attach", &target, "-o", "json"];
        self.stream(words.iter().chain(options))
    }

    /// Returns the command as `run` would start it: nothing to read, both outputs into pipes.
    #[must_use]
    pub fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(sandbox) = self.sandbox {
            sandbox.enter(&mut command);
        }
        command
    }
}

/// Finds the program: `target/debug/deps/e2e-1234` is the test, `target/debug/lifemon` the program.
fn beside_the_tests() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let deps = test.parent().expect("a directory");
    deps.parent().unwrap_or(deps).join("lifemon")
}

/// A run whose output is collected; killed on drop.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
}

impl Running {
    /// Returns the pid of lifemon.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        // Reaped only through this handle: while try_wait has no status, the number is its own.
        if let Ok(None) = self.child.try_wait() {
            _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Returns what it has written to stdout by now.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        let stdout = self.stdout.as_ref();
        stdout.map_or_else(String::new, Collector::text_so_far)
    }

    /// Returns what it has written to stderr by now.
    #[must_use]
    pub fn stderr_so_far(&self) -> String {
        let stderr = self.stderr.as_ref();
        stderr.map_or_else(String::new, Collector::text_so_far)
    }

    /// Sends SIGKILL, unless it has ended, and reaps it.
    pub fn kill(mut self) {
        end(&mut self.child);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end before the deadline.
    #[track_caller]
    #[must_use]
    pub fn finish(mut self, deadline: Duration) -> Output {
        let status = poll(deadline, || {
            self.child.try_wait().expect("wait for lifemon")
        });
        let text = |pipe: &Option<Collector>| pipe.as_ref().map_or(String::new(), Collector::text);
        let Some(status) = status else {
            end(&mut self.child);
            let (out, err) = (text(&self.stdout), text(&self.stderr));
            panic!(
                "{} did not end in {deadline:?}; stdout: {out} stderr: {err}",
                self.what
            );
        };
        Output {
            code: status.code(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing happens where it has been reaped.
        end(&mut self.child);
    }
}

/// What a finished run left.
#[derive(Debug)]
pub struct Output {
    /// The exit code, or `None` when a signal ended it.
    pub code: Option<i32>,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Output {
    /// Returns stdout as the one report that it must be.
    ///
    /// # Panics
    /// When it is no JSON, or has other fields than this type; the message has all of the output.
    #[track_caller]
    #[must_use]
    pub fn report<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the first line of stdout as the object that it must be.
    ///
    /// # Panics
    /// As [`Output::report`].
    #[track_caller]
    #[must_use]
    pub fn first<T: DeserializeOwned>(&self) -> T {
        let line = self.stdout.lines().next().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Claims success without a word on stderr, and returns the report.
    ///
    /// # Panics
    /// When it has failed or complained, and as [`Output::report`].
    #[track_caller]
    #[must_use]
    pub fn success<T: DeserializeOwned>(&self) -> T {
        let ended = (self.code, self.stderr.as_str());
        assert_eq!(ended, (Some(0), ""), "{self:?}");
        self.report()
    }
}

/// Reads a pipe to its end, in the background.
#[derive(Debug)]
pub(crate) struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    pub(crate) fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                shared
                    .lock()
                    .expect("no panic while held")
                    .extend_from_slice(&buffer[..length]);
            }
        });
        Self { bytes, thread }
    }

    /// Returns everything until the end of the pipe, or until it has trailed long enough.
    pub(crate) fn text(&self) -> String {
        _ = poll(TRAILING, || self.thread.is_finished().then_some(()));
        self.text_so_far()
    }

    /// Returns everything that has come by now.
    fn text_so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic while held")).into_owned()
    }
}

/// Sends SIGKILL to this process alone, and reaps it.
pub(crate) fn end(child: &mut Child) {
    _ = child.kill();
    _ = poll(Duration::from_secs(5), || child.try_wait().ok().flatten());
}

//! A running lifemon whose events arrive one JSON object a line, such as `lifemon attach -o json`.
//! On drop it is interrupted as a user would, and killed only when it does not listen.

use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lifemon::{Collector, end};
use crate::reports::{Event, read};
use crate::wait::poll;
use crate::{DEADLINE, JsonLines};

/// How long it may take to end after SIGINT before it is killed.
const POLITENESS: Duration = Duration::from_secs(2);

/// The process and what it has printed so far.
#[derive(Debug)]
pub struct Stream {
    child: Child,
    lines: JsonLines,
    stderr: Collector,
}

/// What a stream that has ended leaves.
#[derive(Debug)]
pub struct Finished {
    /// The exit code, or `None` when a signal ended it.
    pub code: Option<i32>,
    /// Every event, in order.
    pub events: Vec<Value>,
    /// All of stderr.
    pub stderr: String,
}

impl Stream {
    /// Of a program that prints JSON lines, with both outputs in pipes.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn new(what: String, mut child: Child) -> Self {
        let lines = JsonLines::read(what, child.stdout.take().expect("piped"));
        let stderr = Collector::read(child.stderr.take().expect("piped"));
        Self {
            child,
            lines,
            stderr,
        }
    }

    /// With every line read as an event, which has the fields of its kind and those alone.
    #[must_use]
    pub fn of_events(mut self) -> Self {
        self.lines.check_each(|line| _ = read::<Event>(line));
        self
    }

    /// The pid of lifemon.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next event, or `None` when the stream has ended or the deadline has passed.
    pub fn next_event(&mut self, deadline: Duration) -> Option<Value> {
        self.lines.next(deadline)
    }

    /// The first event that fits, seen already or still to come.
    ///
    /// # Panics
    /// When none comes within the default deadline; the message lists every event.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.lines.wait_for(what, DEADLINE, fits)
    }

    /// The first line of an `attach`: the tree as it was.
    ///
    /// # Panics
    /// As [`Stream::wait_for`].
    #[track_caller]
    pub fn attached(&mut self) -> Value {
        self.wait_for("attached", |event| event["event"] == "attached")
    }

    /// The first event of this kind about this pid, seen already or still to come.
    ///
    /// # Panics
    /// As [`Stream::wait_for`].
    #[track_caller]
    pub fn wait_for_event(&mut self, event: &str, pid: i32) -> Value {
        let what = format!("{event} of {pid}");
        self.wait_for(&what, |seen| {
            seen["event"] == event && seen["process"]["pid"] == pid
        })
    }

    /// Every event seen so far, in order.
    #[must_use]
    pub fn events(&self) -> &[Value] {
        self.lines.seen()
    }

    /// SIGINT, as from a terminal but to this process alone.
    pub fn interrupt(&mut self) {
        self.signal(Signal::SIGINT);
    }

    /// A signal to this process, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        // Reaped only through this handle: while try_wait has no status, the number is its own.
        if let Ok(None) = self.child.try_wait() {
            _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Waits until it has ended by itself and everything is read.
    ///
    /// # Panics
    /// When it does not end within the default deadline; it is killed then.
    #[track_caller]
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let status = poll(DEADLINE, || {
            self.child.try_wait().expect("wait for lifemon")
        });
        let Some(status) = status else {
            end(&mut self.child);
            self.lines.drain(Duration::from_secs(1));
            self.lines.missing("its end");
        };
        self.lines.drain(Duration::from_secs(1));
        Finished {
            code: status.code(),
            events: self.lines.seen().to_vec(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.interrupt();
        if poll(POLITENESS, || self.child.try_wait().ok().flatten()).is_none() {
            end(&mut self.child);
        }
        if std::thread::panicking() {
            // Captured with the output of the failed test.
            eprintln!("stderr of lifemon: {}", self.stderr.text());
        }
    }
}

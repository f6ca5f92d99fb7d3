//! A running lifemon whose events arrive one JSON object a line, such as `lifemon attach -o json`.
//! On drop it is interrupted as a user would, and killed only when it does not listen.

use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::lifemon::{Collector, end};
use crate::reports::{About, Attached, Detached, Event, Line};
use crate::wait::poll;
use crate::{DEADLINE, JsonLines, Process};

/// How long it may take to end after SIGINT before it is killed.
const POLITENESS: Duration = Duration::from_secs(2);

/// The process and what it has printed so far.
#[derive(Debug)]
pub struct Stream<T: DeserializeOwned + Clone + Send + 'static = Event> {
    child: Child,
    lines: JsonLines<T>,
    stderr: Collector,
}

/// What a stream that has ended leaves.
#[derive(Debug)]
pub struct Finished<T = Event> {
    /// The exit code, or `None` when a signal ended it.
    pub code: Option<i32>,
    /// Every event, in order.
    pub events: Vec<T>,
    /// All of stderr.
    pub stderr: String,
}

impl Finished {
    /// Returns every line of this kind, in order.
    pub fn all<K: Line + 'static>(&self) -> impl Iterator<Item = &K> {
        self.events.iter().filter_map(K::of)
    }

    /// Returns the last line.
    ///
    /// # Panics
    /// When that is another than `detached`.
    #[must_use]
    #[track_caller]
    pub fn detached(&self) -> &Detached {
        let last = self.events.last().and_then(Detached::of);
        last.unwrap_or_else(|| panic!("the last line is not `detached`: {self:?}"))
    }
}

impl Stream {
    /// Returns the first line of an `attach`: the tree as it was.
    ///
    /// # Panics
    /// As [`Stream::wait_for`].
    #[track_caller]
    pub fn attached(&mut self) -> Attached {
        self.wait_for_line(Attached::WORD, |_| true)
    }

    /// Returns the first line of this kind about this process, seen already or still to come.
    ///
    /// # Panics
    /// As [`Stream::wait_for`].
    #[track_caller]
    pub fn wait_for_event<K: About>(&mut self, process: Process) -> K {
        let what = format!("{} of {process:?}", K::WORD);
        let event = self.wait_for(&what, |event| event.is::<K>(process));
        K::of(&event).expect("it fits").clone()
    }

    /// Returns the first line of this kind that fits, seen already or still to come.
    ///
    /// # Panics
    /// As [`Stream::wait_for`].
    #[track_caller]
    pub fn wait_for_line<K: Line>(&mut self, what: &str, fits: impl Fn(&K) -> bool) -> K {
        let event = self.wait_for(what, |event| K::of(event).is_some_and(&fits));
        K::of(&event).expect("it fits").clone()
    }
}

impl<T: DeserializeOwned + Clone + Send + 'static> Stream<T> {
    /// Reads a program that prints JSON lines, with both outputs in pipes.
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

    /// Returns the pid of lifemon.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Returns the next event, or `None` when the stream has ended or the deadline has passed.
    pub fn next_event(&mut self, deadline: Duration) -> Option<T> {
        self.lines.next(deadline)
    }

    /// Returns the first event that fits, seen already or still to come.
    ///
    /// # Panics
    /// When none comes within the default deadline; the message lists every event.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&T) -> bool) -> T {
        self.lines.wait_for(what, DEADLINE, fits)
    }

    /// Returns every event seen so far, in order.
    #[must_use]
    pub fn events(&self) -> &[T] {
        self.lines.seen()
    }

    /// Sends SIGINT, as from a terminal but to this process alone.
    pub fn interrupt(&mut self) {
        self.signal(Signal::SIGINT);
    }

    /// Sends a signal to this process, unless it has ended.
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
    pub fn finish(mut self) -> Finished<T> {
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

impl<T: DeserializeOwned + Clone + Send + 'static> Drop for Stream<T> {
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

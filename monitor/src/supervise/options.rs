//! The options of `lifemon run`, and its outcome. Types alone.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use crate::ProcessId;
use crate::kill::Rest;
use crate::process::{Death, Signal};

/// The time that what is left behind may take after the first signal.
const GRACE: Duration = Duration::from_secs(2);

/// The command to run, and what is done with the processes that it leaves.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
    /// Sent first to what is left behind.
    pub(crate) signal: Signal,
    /// Time to wait after that.
    pub(crate) grace: Duration,
    /// Leave it alive.
    pub(crate) keep_orphans: bool,
    pub(crate) keep_matching: Option<String>,
    /// Run the command in a process group of its own, and send what comes to all of that.
    pub(crate) is_group: bool,
    /// Signals that are handed on as others, or not at all; with any of them the command has a
    /// process group of its own as well.
    pub(crate) rewrites: Vec<(Signal, Option<Signal>)>,
    /// Comes when the parent of this process ends.
    pub(crate) parent_death_signal: Option<Signal>,
    /// Leave the working directory once the command has it.
    pub(crate) leaves_directory: bool,
}

impl RunOptions {
    /// Runs this program, found as the shell finds it. What it leaves behind gets SIGTERM, and two
    /// seconds later SIGKILL.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            words: vec![program.into()],
            signal: Signal::TERM,
            grace: GRACE,
            keep_orphans: false,
            keep_matching: None,
            is_group: false,
            rewrites: Vec::new(),
            parent_death_signal: None,
            leaves_directory: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Sets the signal that is sent first to what is left behind.
    #[must_use]
    pub const fn signal(mut self, signal: Signal) -> Self {
        self.signal = signal;
        self
    }

    /// Sets how long to wait after that signal.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Leaves alive what is left behind.
    #[must_use]
    pub const fn keep_orphans(mut self, keep: bool) -> Self {
        self.keep_orphans = keep;
        self
    }

    /// Returns whether the command has a process group of its own.
    pub(super) fn is_isolated(&self) -> bool {
        self.is_group || !self.rewrites.is_empty()
    }

    /// Returns as what a signal is handed on; `None` if it is not.
    pub(super) fn rewritten(&self, signal: i32) -> Option<i32> {
        let rule = self
            .rewrites
            .iter()
            .rfind(|(from, _)| from.number() == signal);
        rule.map_or(Some(signal), |(_, to)| to.map(Signal::number))
    }
}

/// The end of a command, and the outcome for the processes that it left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ended {
    /// The command's process.
    pub command: ProcessId,
    /// The death of the command.
    pub death: Death,
    /// The outcome for the processes that it left.
    pub rest: Rest,
    /// True if one of them had a session of its own, as a daemon has.
    pub left_daemons: bool,
}

impl Ended {
    /// Returns the exit code: the command's own, or 128 and the signal that ended it.
    #[must_use]
    pub fn code(&self) -> u8 {
        let by_signal = self.death.signal().map(|signal| 128 + signal.number());
        let by_itself = self.death.code().map(u32::cast_signed);
        let code = by_signal.or(by_itself).unwrap_or_default();
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// The reason why a command was not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The command does not exist, or may not run.
    #[error("cannot run {word}: {error}")]
    NotStarted {
        /// The command.
        word: String,
        /// The reason.
        error: io::Error,
    },
    /// Something that this process needs failed.
    #[error("cannot supervise the command: {0}")]
    Failed(#[from] io::Error),
}

impl RunError {
    /// Returns the exit code, as `env` and `timeout` have it.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NotStarted { error, .. } if error.raw_os_error() == Some(libc::ENOENT) => 127,
            Self::NotStarted { .. } => 126,
            Self::Failed(_) => 125,
        }
    }
}

//! How processes, deaths and signals are written in every object of the output.

use serde::Deserialize;

use super::identified;
use crate::{Process, proc};

identified! {
    /// An identity alone.
    pub struct Id {}

    /// A process that something else is about.
    pub struct Who {
        /// Its `comm`.
        pub name: Option<String>,
    }

    /// A living member or ghost in a list.
    pub struct Member {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// The process that created it.
        pub creator: Option<Id>,
        /// It is older than tracking.
        #[serde(default)]
        pub inferred: bool,
        /// Ghosts between it and its creator that are no longer known.
        #[serde(default)]
        pub elided: u32,
        /// When it died.
        pub died: Option<String>,
        /// How it died.
        pub exit: Option<Exit>,
    }
}

/// How a process died: `code` or `signal` is null, and neither is absent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// What it exited with.
    #[serde(deserialize_with = "Option::deserialize")]
    pub code: Option<i32>,
    /// What ended it.
    #[serde(deserialize_with = "Option::deserialize")]
    pub signal: Option<i32>,
    /// The name of the signal.
    pub signal_name: Option<String>,
    /// It left a core dump.
    pub core_dumped: bool,
    /// `exited`, `signal` or `oom`.
    pub cause: String,
    /// Who sent the signal.
    pub sender: Option<Sender>,
}

/// Who sent a signal: a process, or the kernel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sender {
    /// The process.
    pub pid: Option<i32>,
    /// When it was started.
    pub start_ns: Option<u64>,
    /// Its `comm`.
    pub name: Option<String>,
    /// The kernel itself.
    #[serde(default)]
    pub kernel: bool,
}

impl Sender {
    /// The kernel, which is no process.
    pub const KERNEL: Self = Self {
        pid: None,
        start_ns: None,
        name: None,
        kernel: true,
    };

    /// Returns the process, as an actor reports it, where it is one.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        Some(Process {
            pid: self.pid?,
            start_ticks: proc::ticks_of_ns(self.start_ns?),
        })
    }
}

/// A fatal signal.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its number.
    pub signal: i32,
    /// Its name.
    pub signal_name: String,
    /// Who sent it.
    pub sender: Option<Sender>,
}

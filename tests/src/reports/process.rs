//! How processes, deaths and signals are written in every object of the output.

use serde::Deserialize;
use serde_json::Value;

use super::{Identified, identified, is_process};
use crate::{Process, proc};

/// An identity alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Id {
    /// In the pid namespace of lifemon.
    pub pid: i32,
    /// When it was started, since boot; with the pid, its identity.
    pub start_ns: u64,
}

impl Identified for Id {
    fn id(&self) -> Self {
        *self
    }
}

identified! {
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
        /// What says that it was to stay, in a dry run.
        #[serde(default)]
        pub deliberate: Vec<Value>,
        /// A client of CUDA MPS, in a dry run.
        #[serde(default)]
        pub mps_client: bool,
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
    /// It was the signal for the death of its parent.
    #[serde(default)]
    pub parent_death: bool,
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

impl Member {
    /// Returns whether it was created by this process.
    #[must_use]
    pub fn is_by(&self, process: Process) -> bool {
        is_process(self.creator.as_ref(), process)
    }

    /// Returns how it died.
    ///
    /// # Panics
    /// When it is none of the dead.
    #[must_use]
    #[track_caller]
    pub fn death(&self) -> &Exit {
        let exit = self.exit.as_ref();
        exit.unwrap_or_else(|| panic!("no exit in {self:?}"))
    }
}

impl Exit {
    /// Returns the death of a process that called exit.
    #[must_use]
    pub fn exited(code: i32) -> Self {
        Self {
            code: Some(code),
            signal: None,
            signal_name: None,
            core_dumped: false,
            cause: "exited".to_owned(),
            sender: None,
            parent_death: false,
        }
    }

    /// Returns whether a signal that this process has sent has ended it.
    #[must_use]
    pub fn is_sent_by(&self, process: Process) -> bool {
        let sender = self.sender.as_ref().and_then(Sender::process);
        sender == Some(process)
    }
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
    /// The root of the tree of who sent it.
    pub sender_root: Option<Value>,
    /// It was the signal for the death of its parent.
    #[serde(default)]
    pub parent_death: bool,
}

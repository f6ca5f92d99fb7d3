//! What lifemon prints with `-o json`, as types: a field that is renamed, added or gone fails every
//! test that reads such an object. Written here once more, because a contract that is read with
//! the types that it is written with holds whatever they say.

mod stream;
mod track;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Process, proc};

pub use stream::{
    Attached, Detached, Event, Exec, Exited, Extinct, Fork, Gone, GpuHeld, GpuReleased, Lost,
    Orphaned, Signalled, Subject, Summary,
};
pub use track::{HookCost, TrackLost, TrackStatus, TrackSwitch};

/// Reads an object of the output.
///
/// # Panics
/// When it has not the fields of this type, and those alone.
#[must_use]
#[track_caller]
pub fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// What names a process in the output.
pub trait Identified {
    /// Returns the process, as an actor reports it.
    fn process(&self) -> Process;
}

/// Returns the processes of a list.
#[must_use]
pub fn set_of(list: &[impl Identified]) -> BTreeSet<Process> {
    list.iter().map(Identified::process).collect()
}

/// Returns the entry of one process in a list, if it is there.
#[must_use]
pub fn find<T: Identified>(list: &[T], process: Process) -> Option<&T> {
    list.iter().find(|entry| entry.process() == process)
}

/// Returns the entry of one process in a list.
///
/// # Panics
/// When it is not there.
#[must_use]
#[track_caller]
pub fn entry<T: Identified + Debug>(list: &[T], process: Process) -> &T {
    find(list, process).unwrap_or_else(|| panic!("no {process:?} in {list:?}"))
}

/// Writes types of the output that name a process, each with the same two fields first.
macro_rules! identified {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident { $( $(#[$field_about:meta])* pub $field:ident: $kind:ty, )* }
    )+) => { $(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// In the pid namespace of lifemon.
            pub pid: i32,
            /// When it was started, since boot; with the pid, its identity.
            pub start_ns: u64,
            $( $(#[$field_about])* pub $field: $kind, )*
        }

        impl $crate::reports::Identified for $name {
            fn process(&self) -> $crate::Process {
                $crate::Process {
                    pid: self.pid,
                    start_ticks: $crate::proc::ticks_of_ns(self.start_ns),
                }
            }
        }
    )+ };
}
use identified;

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

    /// A process that a kill has ended.
    pub struct Killed {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// How it died.
        pub exit: Option<Exit>,
    }

    /// A process that a kill has not ended.
    pub struct Survivor {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// Why not.
        pub reason: String,
    }

    /// A process that looks like a former member of a tree.
    pub struct Suspect {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// The parent that it has now.
        pub parent: Who,
        /// What speaks for it.
        pub evidence: Vec<Evidence>,
        /// It was killed with the tree.
        pub killed: bool,
    }

    /// GPU memory of one of the killed, given back.
    pub struct Released {
        /// How long that took.
        pub after_ms: f64,
    }

    /// GPU memory of one of the killed, not given back in time.
    pub struct Held {
        /// What the process was doing.
        pub state: String,
    }

    /// An orphan that was not killed.
    pub struct Spared {
        /// Its `comm`.
        pub name: Option<String>,
        /// How it was left.
        pub verdict: String,
        /// Why it was spared.
        pub reason: String,
    }

    /// The topmost process of a lineage.
    pub struct Root {
        /// Its `comm`.
        pub name: Option<String>,
        /// Not a ghost.
        pub alive: bool,
    }

    /// A process that was left behind.
    pub struct Orphan {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// `leaked`, `left`, `deliberate` or `inferred`.
        pub verdict: String,
        /// The root of its tree is dead too.
        pub stranded: Option<bool>,
        /// The process that created it.
        pub creator: Option<Who>,
        /// How that one died.
        pub creator_exit: Option<Exit>,
        /// When that was.
        pub orphaned: Option<String>,
        /// How long ago that is.
        pub orphaned_ms: Option<u64>,
        /// How long it has lived.
        pub age_ms: u64,
        /// The topmost process of its lineage.
        pub root: Option<Root>,
        /// The parent that it has now.
        pub parent: Option<Who>,
        /// As in `/proc/PID/stat`.
        pub state: char,
        /// Its command line.
        pub command: Vec<String>,
        /// There is more of the command line.
        #[serde(default)]
        pub command_truncated: bool,
        /// Its cgroup.
        pub cgroup: String,
        /// The unit of systemd that it belongs to.
        pub unit: Option<String>,
        /// The container that it belongs to.
        pub container: Option<String>,
        /// What it holds of GPUs itself.
        pub gpu: Option<Holding>,
        /// It and everything below it.
        pub subtree: Subtree,
        /// What speaks for its verdict.
        #[serde(default)]
        pub evidence: Vec<Evidence>,
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

/// An orphan and everything below it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subtree {
    /// The living.
    pub processes: usize,
    /// Their resident memory.
    pub resident_bytes: u64,
    /// Their time on processors.
    pub cpu_ms: u64,
    /// What they hold of GPUs.
    pub gpu: Option<Holding>,
}

/// What speaks for the verdict on an orphan.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// In one word.
    pub kind: String,
    /// In words.
    pub text: String,
}

/// What a process holds of GPUs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// Device files that it has open.
    pub devices: Vec<String>,
    /// What the driver accounts to it.
    pub memory: Vec<Memory>,
    /// All of that together.
    pub memory_bytes: Option<u64>,
}

/// Memory of one GPU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Which GPU.
    pub gpu: String,
    /// What for.
    pub kind: String,
    /// How much; absent when the driver does not say.
    pub bytes: Option<u64>,
    /// The instance of a partitioned GPU.
    pub gpu_instance: Option<u32>,
}

/// A reason why an answer is not complete.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incomplete {
    /// In one word.
    pub reason: String,
    /// How much, where it is counted.
    pub count: Option<u64>,
    /// What happened, and what to do about it.
    pub advice: Option<String>,
}

/// Claims what makes an answer incomplete: nothing, or that its history begins too late.
///
/// # Panics
/// When it is anything else.
#[track_caller]
pub fn assert_only_history_is_missing(complete: bool, incomplete: &[Incomplete], is_missing: bool) {
    let reasons: Vec<_> = incomplete.iter().map(|it| it.reason.as_str()).collect();
    let expected: &[&str] = if is_missing { &["no_history"] } else { &[] };
    assert_eq!(
        (complete, &reasons[..]),
        (!is_missing, expected),
        "{incomplete:?}"
    );
}

/// What became of the GPU memory of the killed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Given back.
    pub released: Vec<Released>,
    /// Not given back in time.
    pub held: Vec<Held>,
    /// The driver did not answer.
    pub hung: bool,
}

/// The object of `lifemon kill -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the output"
)]
pub struct KillReport {
    /// The version of the output.
    pub schema: String,
    /// The root.
    pub tree: Id,
    /// Nobody was to be killed.
    pub dry_run: bool,
    /// Who would be killed, in a dry run.
    #[serde(default)]
    pub members: Vec<Member>,
    /// Who died.
    pub killed: Vec<Killed>,
    /// Who was dying already.
    pub already_dying: Vec<Who>,
    /// Who is alive.
    pub survivors: Vec<Survivor>,
    /// Who looks like a former member.
    #[serde(default)]
    pub suspects: Vec<Suspect>,
    /// Processes of a member's pid that were no member.
    pub rejected: u64,
    /// The root is older than tracking.
    #[serde(default)]
    pub inferred: bool,
    /// None of the tree can run again.
    pub extinct: bool,
    /// Nothing was lost.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
    /// Until the tree was extinct.
    pub elapsed_ms: f64,
    /// Until the memory of all of them was released.
    pub gone_ms: Option<f64>,
    /// What became of their GPU memory.
    pub gpu: Option<Release>,
}

/// The object of `lifemon orphans -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphansReport {
    /// The version of the output.
    pub schema: String,
    /// What was left behind.
    pub orphans: Vec<Orphan>,
    /// How many are meant and not shown, by verdict.
    pub not_shown: BTreeMap<String, usize>,
    /// What came of killing them, where that was asked for.
    pub kill: Option<KillReport>,
    /// Those that were spared then.
    pub spared: Option<Vec<Spared>>,
    /// Since when the lineage is known.
    pub since: String,
    /// Whose tracker has answered: `host` or `private`.
    pub tracker: String,
    /// Nothing was lost.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
}

//! What lifemon prints with `-o json`, as types: a field that is renamed, added or gone fails every
//! test that reads such an object. Written here once more, because a contract that is read with
//! the types that it is written with holds whatever they say.

mod doctor;
mod gpu;
mod health;
mod kill;
mod orphans;
mod process;
mod run;
mod stream;
mod track;
mod tree;

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Process, proc};

pub use doctor::{Check, DoctorReport};
pub use gpu::{Accounted, Gpu, GpuReport, GpuTree, Holder, Holding, Memory, Nvml, Stranger};
pub use health::{ConnectionFailure, DeadWorker, Found, Health, OpenDevices};
pub use kill::{Held, KillReport, Killed, KillsReport, Release, Released, Survivor};
pub use orphans::{Evidence, Orphan, OrphansReport, Root, Spared, Subtree, Zombie};
pub use process::{Exit, Id, Member, Sender, Signal, Who};
pub use run::{Command, Left, Rest, RunReport};
pub use stream::{
    About, Attached, Detached, Event, Exec, Exited, Extinct, Fork, Frame, Gone, GpuHeld,
    GpuReleased, Line, Lost, Orphaned, Signalled, Subject, Summary,
};
pub use track::{HookCost, TrackLost, TrackOff, TrackState, TrackStatus, TrackSwitch};
pub use tree::{TreeProcess, TreeReport};

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
    /// Returns its identity, to the nanosecond.
    fn id(&self) -> Id;

    /// Returns the process, as an actor reports it.
    fn process(&self) -> Process {
        let Id { pid, start_ns } = self.id();
        Process {
            pid,
            start_ticks: proc::ticks_of_ns(start_ns),
        }
    }
}

/// Returns whether there is a process, and it is this one.
fn is_process(named: Option<&impl Identified>, process: Process) -> bool {
    named.is_some_and(|named| named.process() == process)
}

/// Returns the processes of a list, in its order.
#[must_use]
pub fn processes(list: &[impl Identified]) -> Vec<Process> {
    list.iter().map(Identified::process).collect()
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
            fn id(&self) -> $crate::reports::Id {
                $crate::reports::Id { pid: self.pid, start_ns: self.start_ns }
            }
        }
    )+ };
}
use identified;

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

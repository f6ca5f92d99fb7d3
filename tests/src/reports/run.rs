//! The object that `lifemon run --json FILE` writes.

use serde::Deserialize;

use super::{Exit, Incomplete};

/// The object of `lifemon run --json FILE`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// The command.
    pub command: Command,
    /// How the command ended.
    pub exit: Exit,
    /// What lifemon exits with.
    pub code: i32,
    /// `ebpf` or `subreaper`.
    pub way: String,
    /// Why eBPF was not used.
    pub why_not_ebpf: Option<String>,
    /// What was left behind and died.
    pub killed: Vec<Left>,
    /// What was left behind and is alive.
    pub survivors: Vec<Left>,
    /// The rest was to be kept.
    pub kept: bool,
    /// Nothing was missed.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
    /// From the end of the command until that of the rest.
    pub elapsed_ms: f64,
}

impl RunReport {
    /// Returns the entry of this pid among the killed.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn killed(&self, pid: i32) -> &Left {
        entry(&self.killed, pid)
    }

    /// Returns the entry of this pid among the survivors.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn survivor(&self, pid: i32) -> &Left {
        entry(&self.survivors, pid)
    }
}

/// Returns the entry of one pid: the only name that is known of each of them in every run.
#[track_caller]
fn entry(list: &[Left], pid: i32) -> &Left {
    let found = list.iter().find(|left| left.pid == pid);
    found.unwrap_or_else(|| panic!("{pid} is not in {list:?}"))
}

/// What became of everything below a guardian: the part of a report that is about the rest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// `ebpf` or `subreaper`.
    pub way: String,
    /// Why eBPF was not used.
    pub why_not_ebpf: Option<String>,
    /// What was left behind and died.
    pub killed: Vec<Left>,
    /// What was left behind and is alive.
    pub survivors: Vec<Left>,
    /// Nothing was missed.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
    /// From the order until the end.
    pub elapsed_ms: f64,
}

/// What was run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// In the pid namespace of lifemon.
    pub pid: i32,
    /// When it was started; absent where `/proc` hides it.
    pub start_ns: Option<u64>,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// A process that was left behind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Left {
    /// In the pid namespace of lifemon.
    pub pid: i32,
    /// When it was started; absent where `/proc` hides it.
    pub start_ns: Option<u64>,
    /// Its `comm`.
    pub name: Option<String>,
    /// Its real user.
    pub uid: Option<u32>,
    /// Its pid in its own pid namespace.
    pub ns_pid: Option<i32>,
    /// How it died, among the killed.
    pub exit: Option<Exit>,
    /// Why it is alive, among the survivors.
    pub reason: Option<String>,
}

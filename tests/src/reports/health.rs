//! The health status of a `ProcessManager`, as the example server answers with it.

use serde::Deserialize;

use super::{Exit, Incomplete};

/// A health status.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// `ok` or `unhealthy`.
    pub status: String,
    /// Indices of dead workers.
    #[serde(default)]
    pub dead_workers: Vec<usize>,
    /// What it means and what to do.
    pub message: Option<String>,
    /// Why each of the dead is dead.
    #[serde(default)]
    pub causes: Vec<DeadWorker>,
    /// Living processes of the workers whose creator is dead.
    pub orphans: Vec<Found>,
    /// Who has the device file of a GPU open.
    #[serde(default)]
    pub gpu: Vec<OpenDevices>,
    /// `ebpf` or `subreaper`.
    pub way: String,
    /// Nothing was missed.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
}

/// A dead worker.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadWorker {
    /// Which.
    pub index: usize,
    /// Its pid; absent where it was not started.
    pub pid: Option<i32>,
    /// When it was started; absent where `/proc` hides it.
    pub start_ns: Option<u64>,
    /// Its `comm`.
    pub name: Option<String>,
    /// Why, in words.
    pub cause: String,
    /// How it died.
    pub exit: Option<Exit>,
    /// When.
    pub since: String,
}

/// A process as the manager has found it, perhaps in `/proc` alone.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// In the pid namespace of the manager.
    pub pid: i32,
    /// When it was started; absent where `/proc` hides it.
    pub start_ns: Option<u64>,
    /// What it is called.
    pub name: Option<String>,
}

/// A process that has device files of GPUs open.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenDevices {
    /// In the pid namespace of the manager.
    pub pid: i32,
    /// When it was started; absent where `/proc` hides it.
    pub start_ns: Option<u64>,
    /// Which files.
    pub devices: Vec<String>,
}

/// An error of a connection to a worker, as a message.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFailure {
    /// In a sentence.
    pub error: String,
    /// In one word.
    pub kind: String,
    /// Why the worker is dead, where it is.
    pub cause: Option<String>,
    /// Which worker is dead.
    pub worker: Option<usize>,
}

//! The answers of a manager: the dead workers, and its health status. Their JSON is what is
//! printed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ProcessId;
use crate::gpu::holders::{DeviceFiles, scan};
use crate::kill::Way;
use crate::loss::Incomplete;
use crate::process::{Death, Who};

/// A dead worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadWorker {
    /// Its index.
    pub index: usize,
    /// Its process; `None` where it could not be started.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub process: Option<Who>,
    /// The cause of its death, in words: `SIGKILL from 77 bash`.
    pub cause: String,
    /// The death of its process, as far as known.
    #[serde(default, rename = "exit", skip_serializing_if = "Option::is_none")]
    pub death: Option<Death>,
    /// Time of its death, RFC 3339.
    pub since: String,
}

/// Workers are dead.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
#[error("{label} worker(s) {indices} died. Restart the server to recover.", indices = Indices(.dead))]
pub struct WorkersDied {
    /// The name of the workers in messages.
    pub label: String,
    /// The dead workers, by index.
    pub dead: Vec<DeadWorker>,
}

/// `[0, 2]`.
struct Indices<'a>(&'a [DeadWorker]);

impl fmt::Display for Indices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|dead| dead.index))
            .finish()
    }
}

/// The state of a server: should it get requests?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// Every worker lives.
    Ok,
    /// Some are dead.
    Unhealthy,
}

/// The answer of a health check. `status`, `dead_workers` and `message` are as the Python module
/// has them; the rest is lifemon's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthStatus {
    /// `ok` or `unhealthy`.
    pub status: Health,
    /// Indices of the dead workers; absent when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead_workers: Vec<usize>,
    /// The meaning of the status, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The dead workers, each with its cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<DeadWorker>,
    /// Living processes of the workers whose creator is dead.
    pub orphans: Vec<Who>,
    /// Workers and orphans that have the device file of a GPU open, and which.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu: Vec<GpuHolder>,
    /// The source of this knowledge: `ebpf` or `subreaper`.
    pub way: Way,
    /// True if nothing can have been missed.
    pub complete: bool,
    /// The reasons why the answer is not complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<Incomplete>,
}

/// A process that has device files of GPUs open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuHolder {
    /// The process.
    #[serde(flatten)]
    pub id: ProcessId,
    /// The files.
    pub devices: Vec<String>,
}

/// Returns those of these processes that have a GPU open. No driver is asked: that can take
/// seconds, and a health check must not.
pub(super) fn gpu_holders(processes: Vec<ProcessId>, devices: &DeviceFiles) -> Vec<GpuHolder> {
    if !devices.exist() {
        return Vec::new();
    }
    let mut holders: Vec<_> = scan(processes, devices).holders.into_iter().collect();
    holders.sort_by_key(|(id, _)| *id);
    let holders = holders.into_iter().map(|(id, holding)| {
        let devices = holding.devices.iter();
        GpuHolder {
            id,
            devices: devices.map(|path| path.display().to_string()).collect(),
        }
    });
    holders.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_device_open_is_named() {
        let _open = std::fs::File::open("/dev/full").unwrap();
        let devices = DeviceFiles::new(["/dev/full"]).unwrap();
        let own = crate::proc::identify(std::process::id()).unwrap();
        let found = gpu_holders(vec![own], &devices);
        assert_eq!(found[0].id, own);
        assert_eq!(found[0].devices, ["/dev/full"]);
        let none = DeviceFiles::new(["/dev/no-such*"]).unwrap();
        assert!(gpu_holders(vec![own], &none).is_empty());
    }
}

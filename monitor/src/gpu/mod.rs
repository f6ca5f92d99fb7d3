//! Holders of GPUs: memory by process from NVML ([`nvml`]), open device files of any vendor
//! ([`holders`]), and memory of DRM drivers ([`drm`]); and when the dead give it back
//! ([`release`]). All three, because each misses some: a process that died in the middle of a call
//! holds memory without a file, one that is starting has a file and no memory, and NVML knows
//! NVIDIA alone.

pub mod drm;
pub mod holders;
#[cfg(feature = "cli")]
pub mod mps;
pub mod nvml;
pub mod release;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};

use crate::forest::Forest;
use crate::loss::Loss;
use holders::Scan;
use nvml::{Answer, Gpu};

/// The GPUs and the GPU memory that a process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Holding {
    /// Device files that it has open.
    pub devices: BTreeSet<PathBuf>,
    /// Memory that a driver accounts to it.
    pub memory: Vec<Memory>,
}

impl Holding {
    /// Returns whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.memory.is_empty()
    }

    /// Adds what another process holds: memory of one GPU and kind is one sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.devices.extend(other.devices.iter().cloned());
        for memory in &other.memory {
            let is_same = |known: &&mut Memory| {
                (&known.gpu, known.kind, known.gpu_instance)
                    == (&memory.gpu, memory.kind, memory.gpu_instance)
            };
            match self.memory.iter_mut().find(is_same) {
                None => self.memory.push(memory.clone()),
                Some(known) => {
                    let sums = [known.bytes, memory.bytes].into_iter().flatten();
                    known.bytes = sums.reduce(u64::saturating_add);
                }
            }
        }
    }

    /// Returns all its memory, in bytes; `None` when no driver reported any.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let told = self.memory.iter().filter_map(|memory| memory.bytes);
        told.reduce(u64::saturating_add)
    }
}

/// Processes that hold something of GPUs.
pub type Holders = HashMap<ProcessId, Holding>;

/// Memory of one GPU that a driver accounts to one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Memory {
    /// The GPU: its UUID, or its PCI address.
    pub gpu: String,
    /// The kind of use.
    pub kind: Kind,
    /// Size in bytes; absent when the driver does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The instance of a partitioned GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
}

/// The kind of use of GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// Computing.
    Compute,
    /// Drawing.
    Graphics,
    /// Memory of a DRM driver, which does not report its use.
    Drm,
}

/// Memory of a process that has no living record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Stranger {
    /// Its pid as the driver has it.
    pub pid: u32,
    /// The GPUs and the GPU memory that it holds.
    #[serde(flatten)]
    pub memory: Memory,
    /// Living processes below the dead one that have a GPU open: what is forked after a process has
    /// begun to compute inherits the descriptors, and keeps the memory that they stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "cli",
        schemars(with = "Vec<crate::process::json::IdSchema>")
    )]
    pub kept_by: Vec<ProcessId>,
}

/// Everything that is known about GPUs at one time.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The answer of NVML.
    pub nvml: Answer,
    /// Processes that hold something.
    pub holders: Holders,
    /// Memory of processes that have no living record: they are dying, or in another pid namespace.
    pub strangers: Vec<Stranger>,
    /// Processes whose files could not be looked at.
    pub unreadable: usize,
}

impl Survey {
    /// Returns the GPUs that NVML knows.
    #[must_use]
    pub fn gpus(&self) -> &[Gpu] {
        match &self.nvml {
            Answer::Gpus(gpus) => gpus,
            _ => &[],
        }
    }

    /// Returns what makes it incomplete.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = Vec::new();
        match &self.nvml {
            Answer::Hung(_) => losses.push(Loss::DriverHung),
            answer if answer.is_incomplete() => losses.push(Loss::DriverFailed),
            _ => {}
        }
        if self.unreadable > 0 {
            losses.push(Loss::Unreadable);
        }
        losses
    }
}

/// Joins what NVML answered with what `scan` found. `forest` is of a snapshot that was taken after
/// the answer, `asked_ns` is when the question was sent: a living process that started before that
/// had its pid all the time, so the driver meant it.
#[must_use]
pub fn survey(forest: &Forest, answer: Answer, asked_ns: u64, scan: Scan) -> Survey {
    let Scan {
        mut holders,
        unreadable,
    } = scan;
    let mut strangers = Vec::new();
    let scanned: HashSet<ProcessId> = holders.keys().copied().collect();
    if let Answer::Gpus(gpus) = &answer {
        for gpu in gpus {
            for (pid, memory) in gpu.memory() {
                let holder = forest.live(pid).filter(|id| id.start_ns < asked_ns);
                if let Some(id) = holder {
                    holders.entry(id).or_default().memory.push(memory);
                    continue;
                }
                let kept_by = keepers(forest, pid, &scanned);
                strangers.push(Stranger {
                    pid,
                    memory,
                    kept_by,
                });
            }
        }
    }
    Survey {
        nvml: answer,
        holders,
        strangers,
        unreadable,
    }
}

/// Returns the living below the dead process of this pid that have a GPU open.
fn keepers(forest: &Forest, pid: u32, holders: &HashSet<ProcessId>) -> Vec<ProcessId> {
    let ghosts = forest.records().map(|(id, _)| *id);
    let ghosts = ghosts.filter(|id| id.pid == pid && forest.is_dead(id));
    let below = ghosts.flat_map(|ghost| forest.living(ghost));
    let mut keepers: Vec<_> = below.filter(|id| holders.contains(id)).collect();
    keepers.sort();
    // A pid that was used twice in one line of creators.
    keepers.dedup();
    keepers
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::{DEAD, LIVE, Record};

    use super::*;

    fn forest() -> Forest {
        let record = Record {
            state: LIVE,
            ..Record::default()
        };
        Forest::new([(ProcessId::new(u32::MAX / 4, 50), record)])
    }

    fn answer(pid: u32) -> Answer {
        Answer::Gpus(vec![Gpu::of_one_process(pid, 1 << 30)])
    }

    #[test]
    fn memory_goes_to_the_process_that_had_the_pid_when_the_driver_was_asked() {
        let known = survey(&forest(), answer(u32::MAX / 4), 60, Scan::default());
        let id = ProcessId::new(u32::MAX / 4, 50);
        assert_eq!(known.holders[&id].memory_bytes(), Some(1 << 30));
        assert!(known.strangers.is_empty());
        let successor = survey(&forest(), answer(u32::MAX / 4), 40, Scan::default());
        assert_eq!(successor.strangers.len(), 1);
        assert!(successor.holders.is_empty());
    }

    #[test]
    fn a_keeper_below_two_dead_processes_of_one_pid_is_named_once() {
        let pid = u32::MAX / 4;
        let ids = [(pid, 10), (pid, 20), (pid - 1, 30)];
        let [first, second, keeper] = ids.map(|(pid, start_ns)| ProcessId::new(pid, start_ns));
        let record = |creator, state| Record {
            creator,
            state,
            ..Record::default()
        };
        let forest = Forest::new([
            (first, record(ProcessId::NONE, DEAD)),
            (second, record(first, DEAD)),
            (keeper, record(second, LIVE)),
        ]);
        assert_eq!(keepers(&forest, pid, &[keeper].into()), [keeper]);
    }
}

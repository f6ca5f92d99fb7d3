//! The object of `lifemon gpu -o json`, and what a process holds of GPUs.

use serde::Deserialize;

use super::{Incomplete, KillReport, Orphan, Root, Spared, identified};

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

/// The object of `lifemon gpu -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// What NVIDIA's library has answered.
    pub nvml: Nvml,
    /// The GPUs that it knows.
    pub gpus: Vec<Gpu>,
    /// Who holds any.
    pub holders: Vec<Holder>,
    /// Memory of pids that no living process has.
    pub strangers: Vec<Stranger>,
    /// The same by tree.
    pub trees: Vec<GpuTree>,
    /// What came of killing the orphans, where that was asked for.
    pub kill: Option<KillReport>,
    /// Those that were spared then.
    pub spared: Option<Vec<Spared>>,
    /// The orphans whose trees were killed.
    pub killed_trees: Option<Vec<super::Who>>,
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

/// What NVIDIA's library has answered.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nvml {
    /// `ok`, `absent`, `failed` or `hung`.
    pub state: String,
    /// Why, in a sentence.
    pub detail: Option<String>,
    /// How long it was waited for.
    pub after_ms: Option<u64>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// Its identity.
    pub uuid: Option<String>,
    /// Its model.
    pub name: Option<String>,
    /// Its memory.
    pub total_bytes: Option<u64>,
    /// What is in use of it.
    pub used_bytes: Option<u64>,
    /// It is several instances.
    pub is_partitioned: bool,
    /// Processes that the driver accounts memory to.
    pub processes: Vec<Accounted>,
    /// What could not be asked.
    #[serde(default)]
    pub errors: Vec<String>,
}

/// Memory of one process, as the driver accounts it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accounted {
    /// Whose.
    pub pid: i32,
    /// What for.
    pub kind: String,
    /// How much; absent when the driver does not say.
    pub bytes: Option<u64>,
    /// The instance of a partitioned GPU.
    pub gpu_instance: Option<u32>,
}

/// Memory of a pid that no living process has.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stranger {
    /// Whose, as the driver says.
    pub pid: i32,
    /// Which GPU.
    pub gpu: String,
    /// What for.
    pub kind: String,
    /// How much; absent when the driver does not say.
    pub bytes: Option<u64>,
    /// The instance of a partitioned GPU.
    pub gpu_instance: Option<u32>,
    /// The living below the dead one that have a GPU open.
    #[serde(default)]
    pub kept_by: Vec<super::Id>,
}

/// What a tree holds of GPUs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuTree {
    /// Its root.
    pub root: Root,
    /// How many of it hold any.
    pub processes: u64,
    /// All of their memory.
    pub memory_bytes: Option<u64>,
}

identified! {
    /// A process that holds a GPU.
    pub struct Holder {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// Device files that it has open.
        pub devices: Vec<String>,
        /// What the driver accounts to it.
        pub memory: Vec<Memory>,
        /// All of that together.
        pub memory_bytes: Option<u64>,
        /// Its command line.
        pub command: Vec<String>,
        /// There is more of the command line.
        #[serde(default)]
        pub truncated: bool,
        /// All of it in base64, where it is no UTF-8.
        pub bytes: Option<String>,
        /// Its cgroup.
        pub cgroup: String,
        /// The unit of systemd that it belongs to.
        pub unit: Option<String>,
        /// The container that it belongs to.
        pub container: Option<String>,
        /// Its creators, the nearest first.
        pub lineage: Vec<Root>,
        /// The topmost process of its lineage.
        pub root: Root,
        /// The orphan that it is or stands below.
        pub orphan: Option<Orphan>,
    }
}

//! What a process holds of GPUs.

use serde::Deserialize;

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

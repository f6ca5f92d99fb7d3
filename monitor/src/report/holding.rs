//! What a process holds of GPUs, as text and as JSON.

use schemars::JsonSchema;
use serde::Serialize;

use super::out::printable;
use crate::gpu::{Holding, Memory};

/// Returns `  {2.0 GiB on GPU-1, /dev/nvidia0}`, or nothing.
pub(super) fn text(holding: &Holding) -> String {
    if holding.is_empty() {
        return String::new();
    }
    let mut parts = Vec::new();
    for memory in &holding.memory {
        let bytes = memory
            .bytes
            .map_or_else(|| "memory of unknown size".to_owned(), size);
        parts.push(format!("{bytes} on {}", printable(&memory.gpu)));
    }
    let devices = holding
        .devices
        .iter()
        .map(|path| path.display().to_string());
    parts.extend(devices.map(|path| printable(&path)));
    format!("  {{{}}}", parts.join(", "))
}

/// Returns `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, unit)| format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
    )
}

/// The GPUs and the GPU memory that a process holds.
#[derive(Serialize, JsonSchema)]
pub(super) struct HoldingJson<'a> {
    devices: Vec<String>,
    memory: &'a [Memory],
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
}

impl<'a> HoldingJson<'a> {
    pub(super) fn of(holding: &'a Holding) -> Option<Self> {
        (!holding.is_empty()).then(|| Self {
            devices: holding
                .devices
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            memory: &holding.memory,
            memory_bytes: holding.memory_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(5), "5 B");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(1 << 20), "1.0 MiB");
    }
}

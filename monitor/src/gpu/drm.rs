//! GPU memory as DRM drivers (AMD, Intel and others) report it, in `fdinfo` of every open
//! descriptor of a GPU. Inherited and duplicated descriptors report the same client again, so each
//! client counts once. Keys: the kernel's `Documentation/gpu/drm-usage-stats.rst`.

use std::collections::BTreeMap;

use super::{Kind, Memory};
use crate::proc;

/// A client of a DRM driver, as one descriptor reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    /// PCI address of the GPU, or the driver's name.
    gpu: String,
    /// The client's number, one for each opening of the device.
    number: u64,
    /// Its memory in all regions, in bytes.
    bytes: u64,
}

/// Returns the client of one descriptor; `None` unless its driver is a DRM driver that reports
/// memory.
pub(super) fn client(pid: u32, descriptor: u32) -> Option<Client> {
    parse(&proc::descriptor_info(pid, descriptor)?)
}

/// Sums up the memory of one process by GPU.
pub(super) fn memory(clients: impl IntoIterator<Item = Client>) -> Vec<Memory> {
    let mut once: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for client in clients {
        once.insert((client.gpu, client.number), client.bytes);
    }
    let mut by_gpu: BTreeMap<String, u64> = BTreeMap::new();
    for ((gpu, _), bytes) in once {
        let sum = by_gpu.entry(gpu).or_default();
        *sum = sum.saturating_add(bytes);
    }
    let memory = by_gpu.into_iter().map(|(gpu, bytes)| Memory {
        gpu,
        kind: Kind::Drm,
        bytes: Some(bytes),
        gpu_instance: None,
    });
    memory.collect()
}

/// Reads lines of `key: value`. A region is reported as `drm-total-REGION` by newer drivers and as
/// `drm-memory-REGION` by older ones; where both are there they are the same memory.
fn parse(text: &str) -> Option<Client> {
    let (mut gpu, mut driver, mut number) = (None, None, None);
    let mut regions: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key {
            "drm-pdev" => gpu = Some(value),
            "drm-driver" => driver = Some(value),
            "drm-client-id" => number = value.parse().ok(),
            _ => {
                let region = key
                    .strip_prefix("drm-total-")
                    .or_else(|| key.strip_prefix("drm-memory-"));
                if let (Some(region), Some(bytes)) = (region, bytes(value)) {
                    let known = regions.entry(region).or_default();
                    *known = bytes.max(*known);
                }
            }
        }
    }
    Some(Client {
        gpu: gpu.or(driver)?.to_owned(),
        number: number?,
        bytes: regions
            .values()
            .fold(0, |sum, bytes| sum.saturating_add(*bytes)),
    })
}

/// Reads `123`, `123 KiB`, `123 MiB`.
fn bytes(value: &str) -> Option<u64> {
    let mut words = value.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let factor = match words.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some(_) => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: &str = "pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t7\n\
        drm-pdev:\t0000:03:00.0\ndrm-memory-vram:\t1024 KiB\ndrm-memory-gtt: \t4 KiB\n\
        drm-total-vram:\t1024 KiB\ndrm-engine-gfx:\t99 ns\n";

    #[test]
    fn a_region_that_is_told_twice_counts_once() {
        let client = parse(AMD).unwrap();
        assert_eq!(client.bytes, (1024 + 4) << 10);
        assert_eq!((client.gpu.as_str(), client.number), ("0000:03:00.0", 7));
    }

    #[test]
    fn a_descriptor_that_was_handed_on_counts_once() {
        let client = parse(AMD).unwrap();
        let other = Client {
            number: 8,
            ..client.clone()
        };
        let memory = memory([client.clone(), client, other]);
        assert_eq!(memory.len(), 1);
        assert_eq!(memory[0].bytes, Some(2 * (1028 << 10)));
    }

    #[test]
    fn other_files_and_nonsense_are_no_clients() {
        for text in [
            "",
            "pos:\t0\n",
            "drm-driver:\ti915\n",
            "drm-client-id: x\ndrm-driver: y",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let nonsense = "drm-driver: d\ndrm-client-id: 1\ndrm-total-a: 99999999999999999999 MiB\n\
            drm-total-b: 18446744073709551615 KiB\ndrm-total-c: 5 miles\n";
        assert_eq!(parse(nonsense).unwrap().bytes, 0);
    }
}

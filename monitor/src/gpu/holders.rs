//! Processes that have the device file of a GPU open. Files are recognised by name alone, so that
//! nothing here touches a device or waits for a driver.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use lifemon_ebpf::ProcessId;

use super::{Holders, Holding, drm};
use crate::proc;

/// The device files of NVIDIA, AMD's compute driver, and DRM.
pub const DEVICES: [&str; 4] = [
    "/dev/nvidia*",
    "/dev/nvidia-caps/*",
    "/dev/kfd",
    "/dev/dri/renderD*",
];

/// DRM nodes report memory in `fdinfo`.
const DRM: &str = "/dev/dri/";

/// The device files that count as GPUs.
#[derive(Debug, Clone)]
pub struct DeviceFiles {
    set: GlobSet,
    /// Directories that files of the set are in.
    directories: Vec<PathBuf>,
}

/// A pattern of device files that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{pattern} is no pattern of device files: {reason}")]
pub struct BadPattern {
    pattern: String,
    reason: String,
}

impl DeviceFiles {
    /// Takes the files that one of these patterns matches: `/dev/nvidia*`.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, BadPattern> {
        let mut set = GlobSetBuilder::new();
        let mut directories = Vec::new();
        let bad = |pattern: &str, error: &globset::Error| BadPattern {
            pattern: pattern.to_owned(),
            reason: error.kind().to_string(),
        };
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            set.add(glob.map_err(|error| bad(pattern, &error))?);
            directories.extend(Path::new(pattern).parent().map(Path::to_path_buf));
        }
        let set = set.build().map_err(|error| bad("", &error))?;
        Ok(Self { set, directories })
    }

    fn has(&self, path: &Path) -> bool {
        self.set.is_match(path)
    }

    /// Returns whether this host has any of these files: without one there is no GPU to ask about.
    #[must_use]
    pub fn exist(&self) -> bool {
        let entries = self
            .directories
            .iter()
            .filter_map(|path| fs::read_dir(path).ok());
        entries
            .flatten()
            .flatten()
            .any(|entry| self.has(&entry.path()))
    }
}

/// The devices of GPUs.
impl Default for DeviceFiles {
    fn default() -> Self {
        // Constants, which a test builds.
        Self::new(DEVICES).unwrap_or(Self {
            set: GlobSet::empty(),
            directories: Vec::new(),
        })
    }
}

/// The result of one scan of processes.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// The processes that have one of the files open, with the memory that DRM drivers report.
    pub holders: Holders,
    /// Processes whose files may not be looked at.
    pub unreadable: usize,
}

/// Looks at the open files of these processes.
#[must_use]
pub fn scan(processes: impl IntoIterator<Item = ProcessId>, files: &DeviceFiles) -> Scan {
    let mut scan = Scan::default();
    for id in processes {
        match holding(id, files) {
            Ok(holding) if holding.is_empty() => {}
            Ok(holding) => {
                scan.holders.insert(id, holding);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => scan.unreadable += 1,
            // It has died.
            Err(_) => {}
        }
    }
    scan
}

/// Returns what one process has open; nothing when its pid is another process's by now.
fn holding(id: ProcessId, files: &DeviceFiles) -> io::Result<Holding> {
    let mut holding = Holding::default();
    let mut clients = Vec::new();
    for file in proc::open_files(id.pid, |file| files.has(&file.target))? {
        if file.target.starts_with(DRM) {
            clients.extend(drm::client(id.pid, file.descriptor));
        }
        holding.devices.insert(file.target);
    }
    if holding.is_empty() || !proc::owns_pid(id) {
        return Ok(Holding::default());
    }
    holding.memory = drm::memory(clients);
    Ok(holding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_gpus_count_and_others_do_not() {
        let files = DeviceFiles::default();
        for gpu in [
            "/dev/nvidia0",
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-caps/nvidia-cap1",
            "/dev/kfd",
            "/dev/dri/renderD128",
        ] {
            assert!(files.has(Path::new(gpu)), "{gpu}");
        }
        for other in ["/dev/null", "/dev/dri/card0", "/dev/nvidia0/x", "pipe:[1]"] {
            assert!(!files.has(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn whether_a_host_has_such_files_is_seen_without_opening_any() {
        let exist = |pattern: &str| DeviceFiles::new([pattern]).unwrap().exist();
        assert!(exist("/dev/nul*"));
        assert!(!exist("/dev/no-such-device*"));
        assert!(!exist("/no-such-directory/*"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = DeviceFiles::new(["/dev/[a"]).unwrap_err();
        assert!(
            error.to_string().starts_with("/dev/[a is no pattern"),
            "{error}"
        );
    }
}

//! Processes that have the device file of a GPU open. Devices are recognised by their numbers,
//! under whatever name a process has opened them (a container has names of its own); a device that
//! has no file on this host is recognised by its name. Nothing here touches a device or waits for a
//! driver.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use lifemon_ebpf::ProcessId;

use super::{Holders, Holding, drm, nvml};
#[cfg(feature = "cli")]
use crate::forest::{Forest, walk};
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

    /// Lists those that this host has.
    fn present(&self) -> impl Iterator<Item = PathBuf> {
        let directories = self.directories.iter();
        let entries = directories.filter_map(|path| fs::read_dir(path).ok());
        let paths = entries.flatten().flatten().map(|entry| entry.path());
        paths.filter(|path| self.has(path))
    }

    /// Returns whether this host has any of these files: without one there is no GPU to ask about.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.present().next().is_some()
    }

    /// Returns the numbers of those that this host has, each with its name here.
    fn numbers(&self) -> HashMap<(u32, u32), PathBuf> {
        let numbered = |path: PathBuf| Some((proc::device_number(&path)?, path));
        self.present().filter_map(numbered).collect()
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
    let numbers = files.numbers();
    for id in processes {
        match holding(id, files, &numbers) {
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

/// Looks at the open files of all the living, or of those below orphans alone.
#[cfg(feature = "cli")]
pub(crate) fn scan_below_orphans(forest: &Forest, all: bool, files: &DeviceFiles) -> Scan {
    if all {
        return scan(forest.all_living(), files);
    }
    let below = walk(&forest.orphans(), |id| forest.children(id)).into_iter();
    let below = below.map(|(id, _)| id);
    scan(below.filter(|id| forest.is_live(id)), files)
}

/// Returns those of these processes that have one of the files open, as far as there is time to
/// look: at processes, and at the files of one that has very many. Asks no driver for memory.
pub(crate) fn openers(
    processes: impl IntoIterator<Item = ProcessId>,
    files: &DeviceFiles,
    until: Instant,
) -> HashSet<ProcessId> {
    let numbers = files.numbers();
    let in_time = processes.into_iter().take_while(|_| Instant::now() < until);
    let has_open = |id: &ProcessId| {
        let open = open_devices(*id, files, &numbers, Some(until));
        open.is_ok_and(|open| !open.is_empty()) && proc::owns_pid(*id)
    };
    in_time.filter(has_open).collect()
}

/// Returns what one process has open; nothing when its pid is another process's by now, or when it
/// asks the driver for this one.
fn holding(
    id: ProcessId,
    files: &DeviceFiles,
    numbers: &HashMap<(u32, u32), PathBuf>,
) -> io::Result<Holding> {
    let mut holding = Holding::default();
    let mut clients = Vec::new();
    for (descriptor, device) in open_devices(id, files, numbers, None)? {
        if device.starts_with(DRM) {
            clients.extend(drm::client(id.pid, descriptor));
        }
        holding.devices.insert(device);
    }
    let is_left_out = || clients.is_empty() && nvml::is_own_helper(id);
    if holding.is_empty() || is_left_out() || !proc::owns_pid(id) {
        return Ok(Holding::default());
    }
    holding.memory = drm::memory(clients);
    Ok(holding)
}

/// Returns the descriptors of one process that stand for one of the files, each with the name of
/// that here; after `until`, those that were found by then.
fn open_devices(
    id: ProcessId,
    files: &DeviceFiles,
    numbers: &HashMap<(u32, u32), PathBuf>,
    until: Option<Instant>,
) -> io::Result<Vec<(u32, PathBuf)>> {
    let device_of = |descriptor: u32, target: &Path| {
        // Pipes, sockets and the like have no path.
        let number = target
            .is_absolute()
            .then(|| proc::descriptor_device(id.pid, descriptor))??;
        match numbers.get(&number) {
            Some(name) => Some(name.clone()),
            None => files.has(target).then(|| target.to_owned()),
        }
    };
    let is_device = |file: &proc::OpenFile| device_of(file.descriptor, &file.target).is_some();
    let held = proc::open_files_until(id.pid, until, is_device);
    let named = held?.into_iter().filter_map(|file| {
        let device = device_of(file.descriptor, &file.target)?;
        Some((file.descriptor, device))
    });
    Ok(named.collect())
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
    fn a_device_is_recognised_by_its_number_and_a_file_of_its_name_is_none() {
        use std::os::unix::fs::symlink;
        let directory = std::env::temp_dir().join(format!("lifemon-names-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (other, file) = (directory.join("x"), directory.join("full"));
        symlink("/dev/full", &other).unwrap();
        let _open = (
            fs::File::open(&other).unwrap(),
            fs::File::create(&file).unwrap(),
        );
        let own = proc::identify(std::process::id()).unwrap();
        let devices = |pattern: &str| {
            let files = DeviceFiles::new([pattern]).unwrap();
            let mut found = scan([own], &files).holders;
            found.remove(&own).map(|holding| holding.devices)
        };
        let full = [PathBuf::from("/dev/full")].into();
        assert_eq!(devices("/dev/full"), Some(full));
        assert_eq!(
            devices(other.to_str().unwrap()),
            Some([other.clone()].into())
        );
        assert_eq!(devices(file.to_str().unwrap()), None);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_look_at_one_process_ends_in_time() {
        let _open = fs::File::open("/dev/full").unwrap();
        let own = proc::identify(std::process::id()).unwrap();
        let files = DeviceFiles::new(["/dev/full"]).unwrap();
        let look = |until| open_devices(own, &files, &files.numbers(), Some(until)).unwrap();
        let now = Instant::now();
        assert_eq!(look(now), []);
        assert!(!look(now + std::time::Duration::from_mins(1)).is_empty());
        assert_eq!(openers([own], &files, now), [].into());
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

//! Open files of a process, by the names that the kernel gives them and by the device numbers that
//! it has in memory. A file is never opened, and no file system or driver is asked for anything,
//! because that may hang: `statx` is told to take what the kernel knows (`AT_STATX_DONT_SYNC`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::threads::files_of;
use crate::sys::text;

/// Descriptors of one process that are looked at: as many as the kernel lets a process open where
/// nobody has raised `fs.nr_open`.
const DESCRIPTORS_MAX: usize = 1 << 20;

/// One open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// The descriptor.
    pub descriptor: u32,
    /// `/dev/null`, `pipe:[123]`, `/memfd:name (deleted)`.
    pub target: PathBuf,
}

/// Returns those open files of whoever has this pid now that are wanted. The caller checks who that
/// is. Nothing else is kept, so that a process with very many files costs time and no memory.
///
/// # Errors
/// When they may not be looked at ([`io::ErrorKind::PermissionDenied`]), when there are more than
/// are looked at (the same: some of them are not known), or when the process is gone.
pub fn open_files(pid: u32, is_wanted: impl Fn(&OpenFile) -> bool) -> io::Result<Vec<OpenFile>> {
    open_files_until(pid, None, is_wanted)
}

/// Returns those open files that [`open_files`] returns; when it is later than `until`, those that
/// were found by then.
///
/// # Errors
/// As [`open_files`].
pub(crate) fn open_files_until(
    pid: u32,
    until: Option<Instant>,
    is_wanted: impl Fn(&OpenFile) -> bool,
) -> io::Result<Vec<OpenFile>> {
    read_files(pid, DESCRIPTORS_MAX, until, is_wanted)
}

fn read_files(
    pid: u32,
    descriptors_max: usize,
    until: Option<Instant>,
    is_wanted: impl Fn(&OpenFile) -> bool,
) -> io::Result<Vec<OpenFile>> {
    let mut files = Vec::new();
    for (index, entry) in fs::read_dir(files_of(pid).join("fd"))?.enumerate() {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        if index == descriptors_max {
            let why = format!("process {pid} has more than {descriptors_max} open files");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let entry = entry?;
        let Some(descriptor) = number(&entry.file_name()) else {
            continue;
        };
        // It may have been closed meanwhile.
        if let Ok(target) = fs::read_link(entry.path()) {
            let file = OpenFile { descriptor, target };
            if is_wanted(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// Returns what the kernel and the driver report of one open file.
pub(crate) fn descriptor_info(pid: u32, descriptor: u32) -> Option<String> {
    let path = files_of(pid).join("fdinfo").join(descriptor.to_string());
    text::read(path).ok()
}

/// Returns the pids of processes that have a descriptor of the process with this pid, among so many
/// that are looked at.
pub(crate) fn with_pidfd(of: u32, looked_at_max: usize) -> Vec<u32> {
    let pids = super::pids().unwrap_or_default().into_iter();
    let wanted = format!("Pid:\t{of}");
    let has_one = |pid: &u32| {
        let is_pidfd = |file: &OpenFile| {
            let name = file.target.to_str().unwrap_or_default();
            name == "anon_inode:[pidfd]" || name.starts_with("pidfd:")
        };
        let files = open_files(*pid, is_pidfd).unwrap_or_default().into_iter();
        let mut infos = files.filter_map(|file| descriptor_info(*pid, file.descriptor));
        infos.any(|info| info.lines().any(|line| line == wanted))
    };
    pids.take(looked_at_max).filter(has_one).collect()
}

/// Returns the number of the device that an open file is; `None` where it is none.
pub(crate) fn descriptor_device(pid: u32, descriptor: u32) -> Option<(u32, u32)> {
    device_number(&files_of(pid).join("fd").join(descriptor.to_string()))
}

/// Returns the number of the device that a process has as its standard input.
pub(crate) fn input_device(pid: u32) -> Option<(u32, u32)> {
    descriptor_device(pid, 0)
}

/// Returns the number of the character device that a path leads to.
pub(crate) fn device_number(path: &Path) -> Option<(u32, u32)> {
    let known = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_device = FileType::from_raw_mode(known.stx_mode.into()) == FileType::CharacterDevice;
    is_device.then_some((known.stx_rdev_major, known.stx_rdev_minor))
}

/// Returns the major numbers of character devices whose drivers, as `/proc/devices` names them, are
/// wanted.
pub(crate) fn device_majors(is_wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let text = text::read("/proc/devices").unwrap_or_default();
    let characters = text.split("Block devices").next().unwrap_or_default();
    let lines = characters.lines().filter_map(|line| {
        let (major, name) = line.trim().split_once(' ')?;
        is_wanted(name).then(|| major.parse().ok()).flatten()
    });
    let mut majors: Vec<u32> = lines.collect();
    majors.dedup();
    majors
}

fn number(name: &OsString) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found_by_its_name_and_its_number() {
        let _null = fs::File::open("/dev/null").unwrap();
        let own = std::process::id();
        let is_null = |file: &OpenFile| file.target.as_os_str() == "/dev/null";
        let files = open_files(own, is_null).unwrap();
        assert!(files.iter().all(is_null), "{files:?}");
        let null = files.first().unwrap();
        assert_eq!(descriptor_device(own, null.descriptor), Some((1, 3)));
        assert_eq!(device_number(Path::new("/dev/null")), Some((1, 3)));
        assert_eq!(device_majors(|name| name == "mem"), [1]);
        assert_eq!(device_number(Path::new("/proc")), None);
        assert!(open_files(u32::MAX / 4, is_null).is_err());
    }

    #[test]
    fn a_look_ends_at_its_deadline_in_the_middle_of_one_process() {
        let _open = [(); 20].map(|()| fs::File::open("/dev/null").unwrap());
        let looked_at = std::cell::Cell::new(0);
        // Each file takes longer than the time that there is.
        let until = Instant::now() + std::time::Duration::from_millis(20);
        let is_wanted = |_: &OpenFile| {
            looked_at.set(looked_at.get() + 1);
            std::thread::sleep(std::time::Duration::from_millis(30));
            true
        };
        let found = open_files_until(std::process::id(), Some(until), is_wanted).unwrap();
        // One, or none where this test was kept waiting.
        assert!(looked_at.get() <= 1, "{found:?}");
        assert_eq!(found.len(), looked_at.get());
    }

    #[test]
    fn files_beyond_the_limit_are_an_error_and_never_left_out_silently() {
        let _open = [(); 3].map(|()| fs::File::open("/dev/null").unwrap());
        let error = read_files(std::process::id(), 2, None, |_| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }
}

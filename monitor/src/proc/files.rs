//! Open files of a process by the names that the kernel gives them. Only names: a file is never
//! opened or asked for anything, because that may hang (a network file system, a broken driver).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 65_536;

/// One open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// The descriptor.
    pub descriptor: u32,
    /// `/dev/null`, `pipe:[123]`, `/memfd:name (deleted)`.
    pub target: PathBuf,
}

/// Returns the open files of whoever has this pid now. The caller checks who that is.
///
/// # Errors
/// When they may not be looked at ([`io::ErrorKind::PermissionDenied`]), or the process is gone.
pub fn open_files(pid: u32) -> io::Result<Vec<OpenFile>> {
    let directory = format!("/proc/{pid}/fd");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)?.take(DESCRIPTORS_MAX) {
        let entry = entry?;
        let Some(descriptor) = number(&entry.file_name()) else {
            continue;
        };
        // It may have been closed meanwhile.
        if let Ok(target) = fs::read_link(entry.path()) {
            files.push(OpenFile { descriptor, target });
        }
    }
    Ok(files)
}

/// Returns what the kernel and the driver report of one open file.
pub(crate) fn descriptor_info(pid: u32, descriptor: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()
}

/// Returns the name of what a process has as its standard input.
pub(crate) fn input(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/fd/0")).ok()
}

fn number(name: &OsString) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found_by_its_name() {
        let _null = fs::File::open("/dev/null").unwrap();
        let files = open_files(std::process::id()).unwrap();
        let is_null = |file: &OpenFile| file.target.as_os_str() == "/dev/null";
        assert!(files.iter().any(is_null), "{files:?}");
        assert!(open_files(u32::MAX / 4).is_err());
    }
}

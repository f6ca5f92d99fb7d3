//! Tells whether a process holds a file: open, mapped, as its program, or as a directory that it is
//! in. The file is compared by name and by what the kernel has in memory of it, so that a link, a
//! mount of a container, and a file that was deleted are found; none is opened.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::open_files;
use super::threads::files_of;

/// A file or directory that somebody may hold.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    path: PathBuf,
    file: Option<File>,
}

/// The kernel's identity of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    device: (u32, u32),
    inode: u64,
    /// The device that it is, if it is one: another node of it is the same to its driver.
    is_device: Option<(FileType, u32, u32)>,
}

impl Held {
    /// Takes a path as it was typed. What is not there may be a file that was deleted.
    pub(crate) fn new(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let path = fs::canonicalize(&absolute).unwrap_or(absolute);
        let file = identity(&path);
        Self { path, file }
    }

    /// Returns whether whoever has this pid now holds it, or anything in it where it is a
    /// directory. The caller checks who that is.
    pub(crate) fn is_held_by(&self, pid: u32) -> bool {
        let directory = files_of(pid);
        let links = ["exe", "cwd"].map(|name| directory.join(name));
        if links.iter().any(|link| self.is_link_to(link)) {
            return true;
        }
        let descriptors = directory.join("fd");
        let is_it = |file: &super::files::OpenFile| {
            self.is_named(&file.target)
                || self.is_same(&descriptors.join(file.descriptor.to_string()))
        };
        open_files(pid, is_it).is_ok_and(|found| !found.is_empty()) || self.is_mapped(&directory)
    }

    fn is_link_to(&self, link: &Path) -> bool {
        fs::read_link(link).is_ok_and(|target| self.is_named(&target)) || self.is_same(link)
    }

    /// Returns whether it has this name, or is a directory above it. The kernel adds a word to the
    /// name of a file that was deleted.
    fn is_named(&self, target: &Path) -> bool {
        let bytes = target.as_os_str().as_bytes();
        let name = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        // Everything is below `/`, which says nothing.
        name == self.path || (self.path != Path::new("/") && name.starts_with(&self.path))
    }

    fn is_same(&self, path: &Path) -> bool {
        let Some(own) = self.file else {
            return false;
        };
        identity(path).is_some_and(|other| match (own.is_device, other.is_device) {
            (Some(own), Some(other)) => own == other,
            _ => (own.device, own.inode) == (other.device, other.inode),
        })
    }

    fn is_mapped(&self, directory: &Path) -> bool {
        let maps = fs::read(directory.join("maps")).unwrap_or_default();
        maps.split(|byte| *byte == b'\n').any(|line| {
            // Five fields of numbers, then white space, then the path to the end of the line.
            let start = line.iter().position(|byte| *byte == b'/');
            start.is_some_and(|start| {
                self.is_named(Path::new(std::ffi::OsStr::from_bytes(&line[start..])))
            })
        })
    }
}

fn identity(path: &Path) -> Option<File> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    let known = statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let kind = FileType::from_raw_mode(known.stx_mode.into());
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    Some(File {
        device: (known.stx_dev_major, known.stx_dev_minor),
        inode: known.stx_ino,
        is_device: is_device.then_some((kind, known.stx_rdev_major, known.stx_rdev_minor)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_has_open_or_runs_is_held() {
        let own = std::process::id();
        let is_held = |path: &Path| Held::new(path).is_held_by(own);
        let directory = std::env::temp_dir().join(format!("held-{own}"));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("file");
        assert!(!is_held(&path) && !is_held(&directory));
        let file = fs::File::create(&path).unwrap();
        assert!(is_held(&path) && is_held(&directory));
        fs::hard_link(&path, directory.join("link")).unwrap();
        assert!(is_held(&directory.join("link")), "by another name");
        fs::remove_dir_all(&directory).unwrap();
        assert!(is_held(&path), "after it was deleted");
        drop(file);
        assert!(!is_held(&path));
        assert!(is_held(&std::env::current_exe().unwrap()));
        assert!(!is_held(Path::new("/")));
    }
}

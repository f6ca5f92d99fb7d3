//! Directories that root may follow on a host with hostile users: opened part by part without
//! following links, and refused where anybody but root could have made a part or could change it.
//!
//! A checked path stays what it was: only the owner of a directory, or who may write it, can rename
//! or remove what is in it, and in a sticky directory only the owner of the entry can. So a path
//! whose parts all belong to root, and which nobody else may write (or which are sticky), cannot be
//! pointed elsewhere by a user after the check, also where it is used by name later.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, mkdirat, openat,
    openat2, statat, unlinkat,
};
use rustix::io::Errno;

/// Directories nested deeper than this are not lifemon's.
const DEEPEST: u32 = 8;

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const GROUP_OR_OTHERS: u32 = 0o077;
const STICKY: u32 = 0o1000;

/// A flaw of a part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is a symbolic link.
    Link,
    /// It is something else than a directory.
    NotADirectory,
    /// It belongs to this user, not to root.
    Owner(u32),
    /// Others than root may write it; its mode.
    Writable(u32),
    /// Others than root may open it; its mode.
    Open(u32),
    /// It is on another file system than the BPF file system it should be part of.
    OtherFileSystem,
    /// It is nothing that lifemon makes.
    Foreign,
    /// The kernel refused to open or make it: the error number.
    Refused(i32),
}

/// A path that root must not follow, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {flaw}", path.display())]
pub struct Distrust {
    /// The first part that is wrong, with all before it.
    pub path: PathBuf,
    /// The flaw.
    pub flaw: Flaw,
}

impl Distrust {
    /// Returns what is wrong with a path that is not there.
    pub(super) fn missing(path: &str) -> Self {
        Self {
            path: path.into(),
            flaw: Flaw::Refused(libc::ENOENT),
        }
    }

    /// Returns whether it is not there.
    pub(super) fn is_missing(&self) -> bool {
        self.flaw == Flaw::Refused(libc::ENOENT)
    }

    /// Returns whether this process may not look there: then what is there is not known.
    pub(super) fn is_closed(&self) -> bool {
        // A directory that was opened without the right to list it has no entries to read (EBADF).
        let errors = [libc::EACCES, libc::EPERM, libc::EBADF];
        matches!(self.flaw, Flaw::Refused(errno) if errors.contains(&errno))
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("is a symbolic link"),
            Self::NotADirectory => f.write_str("is not a directory"),
            Self::Owner(uid) => write!(f, "belongs to uid {uid}, not to root"),
            Self::Writable(mode) => {
                write!(f, "may be written by others than root (mode {mode:04o})")
            }
            Self::Open(mode) => write!(f, "may be opened by others than root (mode {mode:04o})"),
            Self::OtherFileSystem => f.write_str("is not on the BPF file system"),
            Self::Foreign => f.write_str("is not lifemon's"),
            Self::Refused(number) => {
                write!(
                    f,
                    "cannot be used: {}",
                    io::Error::from_raw_os_error(*number)
                )
            }
        }
    }
}

/// An open directory, with the path that led to it.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Device and inode: no two directories that exist at the same time share them.
pub(super) type Identity = (u64, u64);

impl Directory {
    /// Opens an absolute path; `None` when a part does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, Distrust> {
        let root = Path::new("/");
        let mut directory = Self::enter(CWD, root, root, ResolveFlags::empty())?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            let Some(current) = directory else {
                return Ok(None);
            };
            current.check_path_part()?;
            directory = current.part(Path::new(name))?;
        }
        if let Some(directory) = &directory {
            directory.check_path_part()?;
        }
        Ok(directory)
    }

    /// Opens the directory `name` in this one, whoever it belongs to; `None` when there is nothing
    /// of that name. It may be on another file system.
    fn part(&self, name: &Path) -> Result<Option<Self>, Distrust> {
        let anywhere = ResolveFlags::empty();
        Self::enter(self.fd.as_fd(), name, &self.path.join(name), anywhere)
    }

    /// Does the same where nothing may be mounted on it: a file system of a user, on a directory of
    /// that user, is not even asked whether it can be opened, because it need not answer.
    pub(super) fn child(&self, name: &Path) -> Result<Option<Self>, Distrust> {
        let here = ResolveFlags::NO_XDEV;
        Self::enter(self.fd.as_fd(), name, &self.path.join(name), here)
    }

    fn enter(
        at: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        resolve: ResolveFlags,
    ) -> Result<Option<Self>, Distrust> {
        let open = |access: OFlags| {
            let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat2(at, name, flags, Mode::empty(), resolve) {
                // A filter of system calls that is older than this one.
                Err(Errno::NOSYS | Errno::PERM) => openat(at, name, flags, Mode::empty()),
                other => other,
            }
        };
        // A directory that this process may not list can be passed through all the same.
        let opened = match open(OFlags::RDONLY) {
            Err(Errno::ACCESS) => open(OFlags::PATH),
            other => other,
        };
        let flaw = match opened {
            Ok(fd) => {
                let path = path.to_owned();
                return Ok(Some(Self { fd, path }));
            }
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => Flaw::OtherFileSystem,
            Err(Errno::NOTDIR | Errno::LOOP) => match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if file_type(&stat) == FileType::Symlink => Flaw::Link,
                _ => Flaw::NotADirectory,
            },
            Err(errno) => Flaw::Refused(errno.raw_os_error()),
        };
        let path = path.to_owned();
        Err(Distrust { path, flaw })
    }

    /// Opens the directory `name` in this one, after making it with `mode` where it is missing.
    /// Nothing may be mounted on it.
    pub(super) fn make_child(&self, name: &str, mode: u32) -> Result<Self, Distrust> {
        self.make(name, mode, Self::child)
    }

    /// Does the same where something may be mounted on it.
    pub(super) fn make_part(&self, name: &str, mode: u32) -> Result<Self, Distrust> {
        self.make(name, mode, Self::part)
    }

    fn make(
        &self,
        name: &str,
        mode: u32,
        open: impl FnOnce(&Self, &Path) -> Result<Option<Self>, Distrust>,
    ) -> Result<Self, Distrust> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.refused(name, errno)),
        }
        let child = open(self, Path::new(name))?;
        // Removed again by somebody who may: root, who is switching the tracker off just now.
        child.ok_or_else(|| self.refused(name, Errno::NOENT))
    }

    /// Says that the kernel refuses `name`, and why.
    pub(super) fn refused(&self, name: &str, errno: Errno) -> Distrust {
        Distrust {
            path: self.path.join(name),
            flaw: Flaw::Refused(errno.raw_os_error()),
        }
    }

    fn distrust(&self, flaw: Flaw) -> Distrust {
        Distrust {
            path: self.path.clone(),
            flaw,
        }
    }

    fn stat(&self) -> Result<Stat, Distrust> {
        fstat(&self.fd).map_err(|errno| self.distrust(Flaw::Refused(errno.raw_os_error())))
    }

    /// Checks that root alone decides what stands under each of root's names in this directory.
    fn check_path_part(&self) -> Result<(), Distrust> {
        let stat = self.stat()?;
        let is_safe = mode(&stat) & GROUP_OR_OTHERS_WRITE == 0 || mode(&stat) & STICKY != 0;
        self.check_owner(&stat)?;
        if is_safe {
            Ok(())
        } else {
            Err(self.distrust(Flaw::Writable(mode(&stat))))
        }
    }

    /// Checks that it belongs to root and that nobody else may write it.
    pub(super) fn check_is_roots(&self) -> Result<(), Distrust> {
        let stat = self.stat()?;
        self.check_owner(&stat)?;
        if mode(&stat) & GROUP_OR_OTHERS_WRITE != 0 {
            return Err(self.distrust(Flaw::Writable(mode(&stat))));
        }
        Ok(())
    }

    /// Checks that nobody but root may even open it: what can be opened can be locked.
    pub(super) fn check_is_private(&self) -> Result<(), Distrust> {
        self.check_is_roots()?;
        let stat = self.stat()?;
        if mode(&stat) & GROUP_OR_OTHERS != 0 {
            return Err(self.distrust(Flaw::Open(mode(&stat))));
        }
        Ok(())
    }

    fn check_owner(&self, stat: &Stat) -> Result<(), Distrust> {
        if stat.st_uid == 0 {
            Ok(())
        } else {
            Err(self.distrust(Flaw::Owner(stat.st_uid)))
        }
    }

    /// Checks that it is on the same file system as `other`.
    pub(super) fn check_is_beside(&self, other: &Self) -> Result<(), Distrust> {
        if self.stat()?.st_dev == other.stat()?.st_dev {
            Ok(())
        } else {
            Err(self.distrust(Flaw::OtherFileSystem))
        }
    }

    /// Returns the magic number of its file system.
    pub(super) fn file_system(&self) -> Result<i64, Distrust> {
        let found = fstatfs(&self.fd);
        let found = found.map_err(|errno| self.distrust(Flaw::Refused(errno.raw_os_error())))?;
        #[allow(clippy::unnecessary_cast, reason = "narrower on some architectures")]
        Ok(found.f_type as i64)
    }

    /// Returns what distinguishes it from any other directory.
    pub(super) fn identity(&self) -> Result<Identity, Distrust> {
        let stat = self.stat()?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Returns whether there is something under `path`, relative to this directory; a link is
    /// nothing.
    pub(super) fn has(&self, path: &str) -> bool {
        statat(&self.fd, path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| file_type(&stat) != FileType::Symlink)
    }

    /// Returns the names of all entries.
    pub(super) fn names(&self) -> Result<Vec<OsString>, Distrust> {
        let refused = |errno: Errno| self.distrust(Flaw::Refused(errno.raw_os_error()));
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }

    /// Removes the file `name`; nothing happens when there is none.
    pub(super) fn remove_file(&self, name: &Path) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the empty directory `name`.
    pub(super) fn remove_directory(&self, name: &Path) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes the directory `name` with all that is in it. Links are removed, never followed, and
    /// nothing of another file system is touched.
    pub(super) fn remove_tree(&self, name: &Path) -> io::Result<()> {
        self.remove_nested(name, DEEPEST)
    }

    fn remove_nested(&self, name: &Path, deeper: u32) -> io::Result<()> {
        let Some(directory) = self.child(name).map_err(io::Error::other)? else {
            return Ok(());
        };
        directory.check_is_beside(self).map_err(io::Error::other)?;
        for name in directory.names().map_err(io::Error::other)? {
            let name = Path::new(&name);
            let stat = statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if file_type(&stat) != FileType::Directory {
                directory.remove_file(name)?;
            } else if deeper == 0 {
                return Err(io::Error::other("directories are nested too deep"));
            } else {
                directory.remove_nested(name, deeper - 1)?;
            }
        }
        self.remove_directory(name)
    }

    /// Returns the path that led here.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn mode(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

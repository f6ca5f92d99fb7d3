//! Where a tracker is pinned: in the BPF file system of the host where that can be trusted, else in
//! one of lifemon's own; and who may mount or unmount one.
//!
//! | path | what |
//! |---|---|
//! | `/sys/fs/bpf` | the BPF file system of the host; mounted by lifemon, 0700, where there is none |
//! | `/run/lifemon/tracker` | 0700; locked while file systems are mounted and unmounted |
//! | `/run/lifemon/tracker/bpf` | lifemon's own BPF file system, 0700, where the host's cannot be trusted |
//! | `lifemon/` in either | the home of a tracker, 0700; locked while the tracker changes |
//! | `lifemon/v<ABI>/` | the tracker of one version |
//!
//! Mounted without a mode, a BPF file system is writable for everybody (1777). Then any user can
//! make `lifemon` first, as a directory or a link: that keeps root from this place, not from
//! tracking. What root has made there before is safe: the directory is sticky.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, SYSFS_MAGIC};
use rustix::io::Errno;

use super::Error;
use super::lock::{self, Lock, Patience};
use super::trusted::{Directory, Distrust, Flaw};
use crate::sys::text;

/// The BPF file system of the host.
pub const SHARED: &str = "/sys/fs/bpf";

/// lifemon's own.
pub const OWN: &str = "/run/lifemon/tracker/bpf";

/// Holds [`OWN`], directory by directory with the mode of each.
const RUN: &str = "/run";
const RUN_PARTS: [(&str, u32); 2] = [("lifemon", 0o755), ("tracker", 0o700)];
const OWN_NAME: &str = "bpf";

/// The home of trackers, in a BPF file system.
const HOME: &str = "lifemon";

/// Mount source that marks a BPF file system that lifemon has mounted, to unmount it again.
const SOURCE: &str = "lifemon";

/// The home of trackers: a directory that only root can open.
#[derive(Debug)]
pub(super) struct Home {
    /// The root of the BPF file system.
    mounted: Directory,
    pub(super) directory: Directory,
}

impl Home {
    /// Opens the home in a BPF file system; `None` when there is none.
    fn open(mounted: Directory) -> Result<Option<Self>, Distrust> {
        let Some(directory) = mounted.child(Path::new(HOME))? else {
            return Ok(None);
        };
        Self::checked(mounted, directory).map(Some)
    }

    /// Opens it, after making it where it is missing.
    fn make(mounted: Directory) -> Result<Self, Distrust> {
        let directory = mounted.make_child(HOME, 0o700)?;
        Self::checked(mounted, directory)
    }

    fn checked(mounted: Directory, directory: Directory) -> Result<Self, Distrust> {
        directory.check_is_private()?;
        directory.check_is_beside(&mounted)?;
        Ok(Self { mounted, directory })
    }

    /// Takes the lock of the home; `None` when the home was removed meanwhile.
    pub(super) fn lock(&self) -> Result<Option<Lock>, Error> {
        let lock = lock::lock(&self.directory, Patience::FULL)?;
        Ok(is_current(&self.directory).then_some(lock))
    }

    /// Removes the home, which is empty and locked.
    pub(super) fn remove(&self) {
        let _ = self.mounted.remove_directory(Path::new(HOME));
    }
}

/// Looks again, after locking, whether a directory still stands where it was opened.
fn is_current(directory: &Directory) -> bool {
    let now = Directory::open(directory.path()).ok().flatten();
    let now = now.and_then(|now| now.identity().ok());
    now.is_some() && now == directory.identity().ok()
}

/// The homes that exist.
#[derive(Debug)]
pub(super) struct Survey {
    /// Homes that can be trusted.
    pub(super) homes: Vec<Home>,
    /// The reason why the other place is not used, where there is something in it.
    pub(super) distrusted: Option<Distrust>,
}

/// Looks for homes.
pub(super) fn survey() -> Survey {
    let mut survey = Survey {
        homes: Vec::new(),
        distrusted: None,
    };
    for place in [OWN, SHARED] {
        let home = open_mounted(place).and_then(|mounted| {
            let home = mounted.map(Home::open).transpose()?;
            Ok(home.flatten())
        });
        match home {
            Ok(home) => survey.homes.extend(home),
            Err(distrust) => survey.distrusted = Some(distrust),
        }
    }
    survey
}

/// Opens the root of the BPF file system that is mounted at `place`; `None` when none is.
fn open_mounted(place: &str) -> Result<Option<Directory>, Distrust> {
    let Some(directory) = Directory::open(Path::new(place))? else {
        return Ok(None);
    };
    let kind = directory.file_system()?;
    if kind == BPF_FS_MAGIC.0 {
        return Ok(Some(directory));
    }
    // The kernel's own empty mount point, or ours. Anything else is somebody's, and not to be
    // covered.
    if place == OWN || kind == SYSFS_MAGIC.0 {
        return Ok(None);
    }
    let path = directory.path().to_owned();
    let flaw = Flaw::OtherFileSystem;
    Err(Distrust { path, flaw })
}

/// A home for a new tracker.
#[derive(Debug)]
pub(super) struct NewHome {
    pub(super) home: Home,
    /// The place where a BPF file system was mounted for it.
    pub(super) mounted: Option<&'static str>,
    /// The reason why the host's was not used.
    pub(super) distrusted: Option<Distrust>,
}

/// Finds or makes a home, and mounts a BPF file system for it where that is needed.
///
/// # Errors
/// [`Error::NoPlace`] when there can be none.
pub(super) fn make_home(mounts: &Mounts) -> Result<NewHome, Error> {
    let distrust = match make_home_at(SHARED, mounts) {
        Ok((home, mounted)) => {
            let distrusted = None;
            return Ok(NewHome {
                home,
                mounted,
                distrusted,
            });
        }
        Err(distrust) => distrust,
    };
    match make_home_at(OWN, mounts) {
        Ok((home, mounted)) => Ok(NewHome {
            home,
            mounted,
            distrusted: Some(distrust),
        }),
        Err(own) => Err(Error::NoPlace {
            shared: distrust,
            own,
        }),
    }
}

fn make_home_at(
    place: &'static str,
    mounts: &Mounts,
) -> Result<(Home, Option<&'static str>), Distrust> {
    let mut mounted = None;
    let mut root = open_mounted(place)?;
    if root.is_none() {
        mounts.mount(place)?;
        mounted = Some(place);
        root = open_mounted(place)?;
    }
    let root = root.ok_or_else(|| Distrust {
        path: place.into(),
        flaw: Flaw::OtherFileSystem,
    })?;
    // Nobody else could make anything in lifemon's own.
    if place == OWN {
        root.check_is_private()?;
    }
    Ok((Home::make(root)?, mounted))
}

/// The right to mount and unmount BPF file systems: one process at a time has it. Where [`RUN`]
/// does not allow for it (read-only in a container), nothing is mounted or unmounted.
#[derive(Debug)]
pub(super) struct Mounts(Result<Locked, Distrust>);

#[derive(Debug)]
struct Locked {
    /// From [`RUN`] down to the directory that is locked.
    directories: Vec<Directory>,
    _lock: Lock,
}

impl Mounts {
    /// Waits for the right.
    ///
    /// # Errors
    /// When somebody else has it too long, or the user asks to stop.
    pub(super) fn lock() -> Result<Self, Error> {
        loop {
            let directories = match make_run_directories() {
                Ok(directories) => directories,
                // Removed between two steps by whoever had the right before.
                Err(distrust) if is_gone(&distrust) => continue,
                Err(distrust) => return Ok(Self(Err(distrust))),
            };
            let Some(last) = directories.last() else {
                continue;
            };
            let lock = lock::lock(last, Patience::FULL)?;
            // Whoever held it before has removed the directory, perhaps.
            if is_current(last) {
                return Ok(Self(Ok(Locked {
                    directories,
                    _lock: lock,
                })));
            }
        }
    }

    /// Mounts a BPF file system at `place`, for root alone.
    fn mount(&self, place: &str) -> Result<(), Distrust> {
        let locked = self.0.as_ref().map_err(Clone::clone)?;
        if let (OWN, Some(last)) = (place, locked.directories.last()) {
            let own = last.make_child(OWN_NAME, 0o700)?;
            own.check_is_private()?;
            let mark = mark().ok_or_else(|| own.refused("", Errno::NOENT))?;
            own.make_child(&mark, 0o700)?;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = Some("mode=0700");
        mount(Some(SOURCE), place, Some("bpf"), flags, options).map_err(|errno| Distrust {
            path: place.into(),
            flaw: Flaw::Refused(errno as i32),
        })
    }

    /// Unmounts what lifemon has mounted and nobody uses any more; whether it did.
    pub(super) fn unmount_unused(&self) -> bool {
        if self.0.is_err() {
            return false;
        }
        let unmounted = [SHARED, OWN].map(|place| {
            is_ours(place)
                && is_empty(Path::new(place))
                && umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok()
        });
        unmounted.contains(&true)
    }
}

impl Drop for Locked {
    /// Removes the directories again, as far as nothing is in them or mounted on them, in this
    /// mount namespace or, by its mark, in another.
    fn drop(&mut self) {
        let names = RUN_PARTS.map(|(name, _)| name);
        let names = names.into_iter().chain([OWN_NAME]);
        let parts: Vec<_> = self.directories.iter().zip(names).collect();
        // Seen only where nothing is mounted on it any more.
        if let Some(last) = self.directories.last()
            && let Ok(Some(own)) = last.child(Path::new(OWN_NAME))
            && let Some(mark) = mark()
        {
            let _ = own.remove_directory(Path::new(&mark));
        }
        for (directory, name) in parts.into_iter().rev() {
            if directory.remove_directory(Path::new(name)).is_err() && directory.has(name) {
                return;
            }
        }
    }
}

/// Returns whether a part below [`RUN`] was removed while the way down was made.
fn is_gone(distrust: &Distrust) -> bool {
    distrust.flaw == Flaw::Refused(libc::ENOENT) && distrust.path != Path::new(RUN)
}

/// Returns the name of what stands in [`OWN`], covered by the file system that this mount namespace
/// has mounted there: removing an empty directory would unmount that in every other namespace, and
/// with it the pins would go.
fn mark() -> Option<String> {
    let namespace = fs::metadata("/proc/self/ns/mnt").ok()?;
    Some(format!("mounted-{}", namespace.ino()))
}

/// Opens the directories that hold [`OWN`], after making those that are missing.
fn make_run_directories() -> Result<Vec<Directory>, Distrust> {
    let run = Directory::open(Path::new(RUN))?.ok_or_else(|| Distrust {
        path: RUN.into(),
        flaw: Flaw::Refused(libc::ENOENT),
    })?;
    let mut directories = vec![run];
    for (name, mode) in RUN_PARTS {
        if let Some(last) = directories.last() {
            let made = last.make_part(name, mode)?;
            made.check_is_roots()?;
            directories.push(made);
        }
    }
    if let Some(last) = directories.last() {
        last.check_is_private()?;
    }
    Ok(directories)
}

/// Returns whether this is the home of a tracker, as anybody can see who may enter the file system.
pub(super) fn is_home(path: &Path) -> bool {
    let is_place = |place| path.parent() == Some(Path::new(place));
    let has_name = path.file_name().is_some_and(|name| name == HOME);
    has_name && [OWN, SHARED].into_iter().any(is_place) && path.symlink_metadata().is_ok()
}

/// Returns whether a file system is mounted that lifemon unmounts when the tracker is switched off.
pub(super) fn has_mounted() -> bool {
    [OWN, SHARED].into_iter().any(is_ours)
}

/// Returns whether lifemon has mounted the BPF file system at `place`.
fn is_ours(place: &str) -> bool {
    let ours = format!("{SOURCE} {place} bpf ");
    let mounts = text::read("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.starts_with(&ours))
}

fn is_empty(place: &Path) -> bool {
    // The kernel itself puts two files for debugging into every BPF file system.
    let is_foreign = |entry: fs::DirEntry| {
        let name = entry.file_name();
        !matches!(name.to_str(), Some("maps.debug" | "progs.debug"))
    };
    fs::read_dir(place).is_ok_and(|entries| !entries.flatten().any(is_foreign))
}

/// Finds what root has left in a home of the host's file system that cannot be trusted any more:
/// the directory, and the names in it for which `is_version` holds. A user who owns the home can
/// rename those, but can neither change what is in them nor move another directory of root's there:
/// that takes the right to write it.
pub(super) fn stranded(is_version: impl Fn(&str) -> bool) -> Option<(Directory, Vec<String>)> {
    let mounted = open_mounted(SHARED).ok().flatten()?;
    let home = mounted.child(Path::new(HOME)).ok().flatten()?;
    home.check_is_beside(&mounted).ok()?;
    home.check_is_private().err()?;
    let is_roots = |name: &String| {
        let version = home.child(Path::new(name)).ok().flatten();
        version.is_some_and(|version| {
            version.check_is_private().is_ok() && version.check_is_beside(&mounted).is_ok()
        })
    };
    let names = home.names().ok()?.into_iter();
    let names = names.filter_map(|name| name.into_string().ok());
    let names = names
        .filter(|name| is_version(name) && is_roots(name))
        .collect();
    Some((home, names))
}

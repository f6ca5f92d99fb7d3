//! The tracker that outlives the process that loaded it: maps, links and programs pinned in the BPF
//! file system, under a directory that carries the ABI version.
//!
//! It appears there by one rename, complete; a loader that is killed before leaves a directory
//! under another name that the next one removes. All changes happen under one lock: `flock` on the
//! directory above the BPF file system, which stays the same while that is mounted and unmounted.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::links::FdLink;
use aya::programs::{Iter, ProgramInfo};
use lifemon_ebpf::ABI;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::hooks::{self, ROLES, Role, STAND_IN};
use super::load::{Loaded, MAPS, map_data};
use super::{Error, Refusal};

/// Where the kernel keeps pinned objects.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// Locked while anything changes.
const LOCKED: &str = "/sys/fs";

/// Mount source that marks a BPF file system that lifemon has mounted, to unmount it again.
const OUR_MOUNT: &str = "lifemon";

/// Programs that are pinned besides the hooks.
const EXTRA_PROGRAMS: [&str; 3] = ["label", "sweep", CLOSER];
const CLOSER: &str = "closer";

/// Pinned as well where tracepoints can be preempted.
const SETTLE: &str = "settle";

/// Directory of all versions.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(BPF_FS).join("lifemon")
}

/// Directory of this version.
#[must_use]
pub fn directory() -> PathBuf {
    root().join(format!("v{ABI}"))
}

/// What stands under [`root`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: the tracker is off.
    Nothing,
    /// A complete tracker of this version.
    Complete,
    /// A tracker of this version, of which something is missing.
    Torn {
        /// The first thing that is missing.
        missing: String,
    },
    /// Only other versions, or what a loader that was killed left.
    Other {
        /// Names of the directories.
        names: Vec<String>,
    },
}

/// Held while the tracker is switched, or while a slot is taken or given back.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

/// Takes the lock, waiting for whoever has it.
///
/// # Errors
/// When the BPF file system's directory cannot be opened or locked.
pub fn lock() -> Result<Lock, Error> {
    let directory = File::open(LOCKED).map_err(Error::Pin)?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map(Lock)
        .map_err(|(_, errno)| Error::Pin(errno.into()))
}

/// Looks what is pinned.
#[must_use]
pub fn look() -> Found {
    let others = versions();
    if !directory().is_dir() {
        return if others.is_empty() {
            Found::Nothing
        } else {
            Found::Other { names: others }
        };
    }
    match expected().into_iter().find(|path| !path.exists()) {
        Some(path) => Found::Torn {
            missing: path
                .strip_prefix(directory())
                .unwrap_or(&path)
                .display()
                .to_string(),
        },
        None => Found::Complete,
    }
}

/// Names under [`root`], without this version.
pub(super) fn versions() -> Vec<String> {
    let own = format!("v{ABI}");
    let Ok(entries) = fs::read_dir(root()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| *name != own)
        .collect()
}

/// Every pin of a complete tracker, without what only preemptible tracepoints need: where that is
/// missing, exits that were skipped are seen as such.
fn expected() -> Vec<PathBuf> {
    let directory = directory();
    let maps = MAPS.iter().map(|name| directory.join("maps").join(name));
    let links = ROLES.into_iter().chain(["label"]);
    let links = links.map(|name| directory.join("links").join(name));
    let programs = ROLES.into_iter().chain(EXTRA_PROGRAMS);
    let programs = programs.map(|name| directory.join("programs").join(name));
    maps.chain(links).chain(programs).collect()
}

/// A pinned map.
pub(super) fn open_map(name: &str) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd as _;
    let map = MapData::from_pin(directory().join("maps").join(name))
        .map_err(|error| Error::Pin(io::Error::other(error)))?;
    map.fd().as_fd().try_clone_to_owned().map_err(Error::Pin)
}

/// The pinned programs of the hooks.
pub(super) fn open_hooks() -> Result<Vec<(Role, OwnedFd)>, Error> {
    let stand_in = is_pinned(STAND_IN).then_some(STAND_IN);
    let roles = ROLES.into_iter().chain(stand_in);
    roles.map(|role| Ok((role, open_program(role)?))).collect()
}

/// The pinned program that settles exits that were skipped, where there is one.
pub(super) fn open_settle() -> Result<Option<OwnedFd>, Error> {
    is_pinned(SETTLE).then(|| open_program(SETTLE)).transpose()
}

fn is_pinned(program: &str) -> bool {
    directory().join("programs").join(program).exists()
}

/// A pinned program.
pub(super) fn open_program(name: &str) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd as _;
    let path = directory().join("programs").join(name);
    let program = ProgramInfo::from_pin(path).and_then(|info| info.fd());
    let program = program.map_err(|error| Error::Pin(io::Error::other(error)))?;
    program.as_fd().try_clone_to_owned().map_err(Error::Pin)
}

/// Runs the pinned label pass: opening the pinned iterator starts one.
pub(super) fn label() -> Result<(), Error> {
    let file = File::open(directory().join("links").join("label")).map_err(Error::Pin)?;
    super::load::drain_iterator(file).map_err(Error::Map)
}

/// Mounts the BPF file system when there is none; whether it did.
pub(super) fn ensure_mounted() -> Result<bool, Error> {
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let kind = statfs(BPF_FS)
        .map_err(|errno| Error::Pin(errno.into()))?
        .filesystem_type();
    if kind == BPF_FS_MAGIC {
        return Ok(false);
    }
    mount(
        Some(OUR_MOUNT),
        BPF_FS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| Error::Pin(errno.into()))?;
    Ok(true)
}

/// Unmounts the BPF file system if lifemon has mounted it and nothing is pinned there any more.
fn unmount_ours() -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return false;
    };
    let ours = format!("{OUR_MOUNT} {BPF_FS} bpf ");
    let is_ours = mounts.lines().any(|line| line.starts_with(&ours));
    // The kernel itself puts two files for debugging into every BPF file system.
    let is_foreign = |entry: fs::DirEntry| {
        !matches!(
            entry.file_name().to_str(),
            Some("maps.debug" | "progs.debug")
        )
    };
    let is_empty = fs::read_dir(BPF_FS).is_ok_and(|entries| !entries.flatten().any(is_foreign));
    is_ours && is_empty && umount2(BPF_FS, MntFlags::MNT_DETACH).is_ok()
}

/// Pins everything of `loaded`, so that it stays when this process ends.
pub(super) fn pin(mut loaded: Loaded) -> Result<(), Error> {
    let building = root().join(format!("building-{}", std::process::id()));
    let result = build(&building, &mut loaded)
        .and_then(|()| fs::rename(&building, directory()).map_err(Error::Pin));
    if result.is_err() {
        let _ = remove_tree(&building);
    }
    result
}

fn build(building: &Path, loaded: &mut Loaded) -> Result<(), Error> {
    let pin_error = |error: &dyn std::fmt::Display| Error::Pin(io::Error::other(error.to_string()));
    for part in ["maps", "links", "programs"] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(building.join(part))
            .map_err(Error::Pin)?;
    }
    for name in MAPS {
        let map = loaded
            .ebpf
            .map(name)
            .and_then(map_data)
            .ok_or(Error::NoProgram(name))?;
        map.pin(building.join("maps").join(name))
            .map_err(|error| pin_error(&error))?;
    }
    let hooks = loaded.hooks.iter().map(|hook| (hook.role, hook.program));
    let settle = loaded.is_preemptible.then_some(SETTLE);
    let closer = hooks::closer(loaded.is_preemptible);
    let extra = EXTRA_PROGRAMS.into_iter().chain(settle).map(|pin| {
        let name = if pin == CLOSER { closer } else { pin };
        (pin, name)
    });
    let programs: Vec<_> = hooks.chain(extra).collect();
    for (pin, name) in programs {
        let program = loaded
            .ebpf
            .program_mut(name)
            .ok_or(Error::NoProgram(name))?;
        program
            .pin(building.join("programs").join(pin))
            .map_err(|error| pin_error(&error))?;
    }
    let links = building.join("links");
    for (role, link) in loaded.links.drain(..) {
        link.pin(links.join(role))
            .map_err(|error| pin_error(&error))?;
    }
    let label = loaded.label_link()?;
    label
        .pin(links.join("label"))
        .map_err(|error| pin_error(&error))?;
    Ok(())
}

/// Removes one version: links first, the exit hook last of them, then the rest.
pub(super) fn remove_version(name: &str) -> Result<(), Error> {
    let directory = root().join(name);
    let roles = [STAND_IN].into_iter().chain(ROLES.into_iter().rev());
    for role in roles {
        match fs::remove_file(directory.join("links").join(role)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::Pin(error)),
            _ => {}
        }
    }
    remove_tree(&directory).map_err(Error::Pin)
}

/// Removes [`root`] when it is empty, and the mount when it is ours; whether that was unmounted.
pub(super) fn remove_root() -> bool {
    let _ = fs::remove_dir(root());
    unmount_ours()
}

/// Removes a directory of pins. Directories of another version may be laid out in another way.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

impl Loaded {
    /// A link of the label pass: opening it where it is pinned runs one.
    fn label_link(&mut self) -> Result<FdLink, Error> {
        let program = self
            .ebpf
            .program_mut("label")
            .ok_or(Error::NoProgram("label"))?;
        let program: &mut Iter = program
            .try_into()
            .map_err(|error| Error::load("label", &error))?;
        let link = program
            .attach()
            .map_err(|error| Error::load("label", &error))?;
        let link = program
            .take_link(link)
            .map_err(|error| Error::load("label", &error))?;
        FdLink::try_from(link).map_err(|error| Error::load("label", &error))
    }
}

/// Whether this process may use the BPF file system at all.
pub(super) fn check() -> Result<(), Refusal> {
    super::preflight::check_privileges()
}

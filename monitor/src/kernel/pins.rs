//! The tracker that outlives the process that loaded it: maps, links and programs pinned in a BPF
//! file system, in a directory of its home ([`super::place`]) that carries the ABI version.
//!
//! It appears there by one rename, complete; a loader that is killed before leaves a directory
//! under another name, which the next one removes. All changes happen under the lock of the home.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use aya::programs::Iter;
use aya::programs::links::FdLink;
use lifemon_ebpf::{ABI, Host};
use rustix::fs::{mkdirat, renameat};

use super::hooks::{self, ROLES, Role, STAND_IN};
use super::load::{Loaded, MAPS, PASSES, map_data};
use super::lock::{self, Lock, Patience};
use super::place::{self, Home, Survey};
use super::shared::{HostView, Shared};
use super::trusted::{Directory, Distrust, Flaw};
use super::{Error, sys};
use crate::loss::Loss;

/// Programs that are pinned besides the hooks.
const EXTRA_PROGRAMS: [&str; 4] = ["sweep", "compact", "settle", CLOSER];
const CLOSER: &str = "closer";

/// The parts of a version.
const PARTS: [&str; 3] = ["maps", "links", "programs"];

/// Name of a directory in which a tracker is being pinned, before the number of the process.
const BUILDING: &str = "building-";

/// The pinned tracker, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: the tracker is off.
    Nothing,
    /// A complete tracker of this version.
    Complete {
        /// Its directory.
        directory: PathBuf,
    },
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
    /// Something that lifemon did not make stands where its directories should.
    Foreign(Distrust),
}

/// The pinned tracker, and a place that had to be passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The pinned tracker where it can be trusted.
    pub found: Found,
    /// A place that is not used, and why.
    pub distrusted: Option<Distrust>,
}

/// Looks at what is pinned.
#[must_use]
pub fn look() -> Look {
    let Survey { homes, distrusted } = place::survey();
    let found = found_in(homes.iter()).unwrap_or_else(Found::Foreign);
    Look { found, distrusted }
}

/// Returns what an answer without the pinned tracker lacks: its history, and whether that is
/// because the tracker is off, or because this user may not open it.
#[must_use]
pub fn missing_history() -> Loss {
    let look = look();
    let distrust = match &look.found {
        Found::Foreign(distrust) => Some(distrust),
        _ => look.distrusted.as_ref(),
    };
    match distrust {
        Some(distrust) if distrust.is_closed() => {
            // A home or below one, or in a file system that lifemon mounts for a tracker alone.
            let is_in_home = distrust.path.ancestors().any(place::is_home);
            if is_in_home || place::has_mounted() {
                Loss::TrackerUnreadable
            } else {
                Loss::TrackerHidden
            }
        }
        _ => Loss::NoHistory,
    }
}

pub(super) fn found_in<'a>(homes: impl Iterator<Item = &'a Home>) -> Result<Found, Distrust> {
    let (mut torn, mut others) = (None, Vec::new());
    for home in homes {
        others.extend(other_versions(home)?);
        let Some(version) = open_version(home)? else {
            continue;
        };
        match missing(&version) {
            None => {
                let directory = version.path().to_owned();
                return Ok(Found::Complete { directory });
            }
            missing => torn = torn.or(missing),
        }
    }
    Ok(match torn {
        Some(missing) => Found::Torn { missing },
        None if others.is_empty() => Found::Nothing,
        None => Found::Other { names: others },
    })
}

pub(super) fn own_name() -> String {
    format!("v{ABI}")
}

/// Returns whether lifemon makes directories of this name: `v7`, `building-123`.
pub(super) fn is_version(name: &str) -> bool {
    let number = name
        .strip_prefix(BUILDING)
        .or_else(|| name.strip_prefix('v'));
    number.is_some_and(|number| {
        number.bytes().all(|byte| byte.is_ascii_digit()) && number.parse::<u32>().is_ok()
    })
}

/// Returns the names of all versions in a home. Anything else there was made by root, but not by
/// lifemon: it is not touched, and nothing is changed beside it.
pub(super) fn versions(home: &Home) -> Result<Vec<String>, Distrust> {
    let names = home.directory.names()?.into_iter();
    names.map(|name| version_name(home, &name)).collect()
}

fn version_name(home: &Home, name: &OsStr) -> Result<String, Distrust> {
    let foreign = || Distrust {
        path: home.directory.path().join(name),
        flaw: Flaw::Foreign,
    };
    let version = name.to_str().filter(|name| is_version(name));
    let version = version.ok_or_else(foreign)?;
    let directory = home.directory.child(Path::new(name))?;
    // Gone meanwhile: somebody has switched.
    if let Some(directory) = directory {
        directory.check_is_roots()?;
        directory.check_is_beside(&home.directory)?;
    }
    Ok(version.to_owned())
}

fn other_versions(home: &Home) -> Result<Vec<String>, Distrust> {
    let own = own_name();
    let names = versions(home)?.into_iter();
    Ok(names.filter(|name| *name != own).collect())
}

fn open_version(home: &Home) -> Result<Option<Directory>, Distrust> {
    home.directory.child(Path::new(&own_name()))
}

/// Returns the first pin that a complete tracker has and this one lacks. What only preemptible
/// tracepoints need may be missing: exits that were skipped are seen as such.
fn missing(version: &Directory) -> Option<String> {
    let maps = MAPS.iter().map(|name| format!("maps/{name}"));
    let links = ROLES.into_iter().chain(PASSES);
    let links = links.map(|name| format!("links/{name}"));
    let programs = ROLES.into_iter().chain(EXTRA_PROGRAMS);
    let programs = programs.map(|name| format!("programs/{name}"));
    let mut expected = maps.chain(links).chain(programs);
    expected.find(|pin| !version.has(pin))
}

/// A complete tracker that is pinned, for as long as it is used.
#[derive(Debug)]
pub(super) struct Pins {
    /// The directory of this version.
    version: Directory,
    /// The home: its lock protects the slots of this tracker, also after that was switched off.
    home: Directory,
    /// The links of the passes: creating an iterator of one runs it.
    passes: [(&'static str, OwnedFd); PASSES.len()],
}

impl Pins {
    /// Opens what is pinned; `None` when the tracker is off or torn.
    ///
    /// # Errors
    /// When a pin cannot be opened.
    pub(super) fn open() -> Result<Option<Self>, Error> {
        for home in place::survey().homes {
            let version = open_version(&home).map_err(Error::Foreign)?;
            let Some(version) = version.filter(|version| missing(version).is_none()) else {
                continue;
            };
            version.check_is_roots().map_err(Error::Foreign)?;
            return Ok(Some(Self {
                passes: passes(&version)?,
                version,
                home: home.directory,
            }));
        }
        Ok(None)
    }

    /// Returns whether the tracker that was opened is still the one that is pinned: then all that
    /// was opened by name meanwhile belongs to it.
    pub(super) fn is_current(&self) -> bool {
        let now = Directory::open(self.version.path()).ok().flatten();
        let now = now.and_then(|now| now.identity().ok());
        now.is_some() && now == self.version.identity().ok()
    }

    /// Takes the lock of this tracker.
    ///
    /// # Errors
    /// As [`lock::lock`].
    pub(super) fn lock(&self, patience: Patience) -> Result<Lock, Error> {
        lock::lock(&self.home, patience)
    }

    /// Opens a map.
    pub(super) fn map(&self, name: &str) -> Result<OwnedFd, Error> {
        get(&self.version, &format!("maps/{name}"))
    }

    /// Opens a program.
    pub(super) fn program(&self, name: &str) -> Result<OwnedFd, Error> {
        get(&self.version, &format!("programs/{name}"))
    }

    /// Opens the programs of the hooks.
    pub(super) fn hooks(&self) -> Result<Vec<(Role, OwnedFd)>, Error> {
        let stand_in = self.has_program(STAND_IN).then_some(STAND_IN);
        let roles = ROLES.into_iter().chain(stand_in);
        roles.map(|role| Ok((role, self.program(role)?))).collect()
    }

    fn has_program(&self, name: &str) -> bool {
        self.version.has(&format!("programs/{name}"))
    }

    /// Opens the closer.
    ///
    /// # Errors
    /// When this tracker was switched off: there is none, or that of another tracker.
    pub(super) fn closer(&self) -> Result<OwnedFd, Error> {
        let path = self.version.path().join("programs").join(CLOSER);
        let program = sys::get_pinned(&path).map_err(Error::Pin)?;
        if self.is_current() {
            return Ok(program);
        }
        let switched = io::Error::new(io::ErrorKind::NotFound, "the tracker was switched off");
        Err(Error::Pin(switched))
    }

    /// Opens a pass: it runs as it is read.
    pub(super) fn pass(&self, name: &'static str) -> Result<File, Error> {
        let mut passes = self.passes.iter();
        let link = passes.find(|(found, _)| *found == name);
        let (_, link) = link.ok_or(Error::NoProgram(name))?;
        let pass = sys::create_iterator(link.as_fd());
        pass.map(File::from).map_err(Error::Map)
    }
}

/// Opens the links of the passes.
fn passes(version: &Directory) -> Result<[(&'static str, OwnedFd); PASSES.len()], Error> {
    let [learn, label, traits] = PASSES;
    let open = |name: &str| get(version, &format!("links/{name}"));
    Ok([
        (learn, open(learn)?),
        (label, open(label)?),
        (traits, open(traits)?),
    ])
}

/// Opens a pinned object by its path. Every part of it was checked, see [`super::trusted`].
fn get(version: &Directory, pin: &str) -> Result<OwnedFd, Error> {
    sys::get_pinned(&version.path().join(pin)).map_err(Error::Pin)
}

/// Tells the watchers of a tracker, which may be torn or of another version, that no more events
/// will come: its links are gone, and they still hold its maps. Where the map is gone, they were
/// told. Returns since when it had kept the lineage.
pub(super) fn tell_watchers(home: &Directory, version: &str) -> Option<u64> {
    let map = home.path().join(version).join("maps/HOST");
    let host = sys::get_pinned(&map).and_then(|map| Shared::<HostView>::new(map, 1));
    let since_ns = host.ok()?.at(0).since_ns.swap(0, Ordering::SeqCst);
    (since_ns != 0).then_some(since_ns)
}

// All versions have had it here, and must: each tells the watchers of any other by it.
const _: () = assert!(std::mem::offset_of!(Host, since_ns) == 24);

/// Pins everything of `loaded` in a locked home, so that it stays when this process ends.
pub(super) fn pin(home: &Directory, mut loaded: Loaded) -> Result<(), Error> {
    loaded.load_request("compact")?;
    let building = format!("{BUILDING}{}", std::process::id());
    let result = build(home, &building, &mut loaded).and_then(|()| {
        let renamed = renameat(home, &building, home, own_name());
        renamed.map_err(|errno| Error::Pin(errno.into()))
    });
    if result.is_err() {
        let _ = home.remove_tree(Path::new(&building));
    }
    result
}

fn build(home: &Directory, building: &str, loaded: &mut Loaded) -> Result<(), Error> {
    let pin_error = |error: &dyn std::fmt::Display| Error::Pin(io::Error::other(error.to_string()));
    let parts = PARTS.map(|part| format!("{building}/{part}"));
    for directory in [building]
        .into_iter()
        .chain(parts.iter().map(String::as_str))
    {
        let made = mkdirat(home, directory, 0o700.into());
        made.map_err(|errno| Error::Pin(errno.into()))?;
    }
    let building = home.path().join(building);
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
    let closer = hooks::closer(loaded.is_preemptible);
    let extra = EXTRA_PROGRAMS.into_iter().map(|pin| {
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
    for pass in PASSES {
        let link = loaded.pass_link(pass)?;
        link.pin(links.join(pass))
            .map_err(|error| pin_error(&error))?;
    }
    Ok(())
}

impl Loaded {
    /// Returns a link of a pass.
    fn pass_link(&mut self, name: &'static str) -> Result<FdLink, Error> {
        let failed = |error| Error::load(name, &error);
        let program = self.ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
        let program: &mut Iter = program.try_into().map_err(failed)?;
        let link = program.attach().map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        FdLink::try_from(link).map_err(|error| Error::load(name, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_kinds_of_names_are_lifemons() {
        for name in ["v1", "v999", "building-1", "building-4194304"] {
            assert!(is_version(name), "{name}");
        }
        for name in [
            "",
            "v",
            "v-1",
            "v+1",
            "v1 ",
            "v1/..",
            "..",
            "vx",
            "V1",
            "building-",
            "building-x",
            "build-1",
            "v99999999999999999999",
            "lifemon",
            "v1.debug",
        ] {
            assert!(!is_version(name), "{name}");
        }
    }
}

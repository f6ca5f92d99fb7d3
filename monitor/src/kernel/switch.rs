//! Switches the pinned tracker on and off. Nobody else changes anything meanwhile: the homes are
//! locked, and before them the right to mount ([`super::place`]).

use std::path::Path;

use super::hooks::{ROLES, STAND_IN};
use super::load::{self, LoadOptions};
use super::lock::Lock;
use super::pins::{self, Found, found_in, versions};
use super::place::{self, Home, Mounts};
use super::tracker::Tracker;
use super::trusted::{Directory, Distrust};
use super::{Error, Refusal, sys};

/// The result of switching the tracker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Switched {
    /// Directories of other versions, or of loaders that were killed, that were removed.
    pub replaced: Vec<String>,
    /// The first pin that was missing from the torn tracker that was removed.
    pub repaired: Option<String>,
    /// Start of the history that is lost with what was replaced, in nanoseconds since the start of
    /// the machine.
    pub lost_since_ns: Option<u64>,
    /// True if there was nothing to do.
    pub unchanged: bool,
    /// The place where a BPF file system was mounted.
    pub mounted: Option<&'static str>,
    /// The reason why the BPF file system of the host is not used.
    pub distrusted: Option<Distrust>,
}

impl Tracker {
    /// Switches the pinned tracker on. What another version or a killed loader left is removed.
    ///
    /// # Errors
    /// [`Error::Refused`] where lifemon cannot work, [`Error::Foreign`] where something that is not
    /// lifemon's stands in its place, and whatever locking, loading or pinning fails with.
    pub fn switch_on(options: &LoadOptions) -> Result<Switched, Error> {
        super::preflight::check()?;
        check_root()?;
        let mounts = Mounts::lock()?;
        let mut homes = Locked::all()?;
        let mut switched = Switched::default();
        homes.clear(&mut switched)?;
        if switched.unchanged {
            return Ok(switched);
        }
        let pinned = homes.pin_new(&mounts, &mut switched, options);
        if pinned.is_err() {
            homes.remove();
            mounts.unmount_unused();
        }
        pinned?;
        if switched.unchanged {
            return Ok(switched);
        }
        sys::wait_for_running_programs().map_err(Error::Map)?;
        if let Some(tracker) = Self::open()? {
            tracker.sweep()?;
        }
        Ok(switched)
    }

    /// Switches the pinned tracker off: no program, map or pin of any version remains.
    ///
    /// # Errors
    /// [`Error::Foreign`] where something that is not lifemon's stands in its place, and when the
    /// pins cannot be locked or removed.
    pub fn switch_off() -> Result<Switched, Error> {
        super::preflight::check_privileges()?;
        let mounts = Mounts::lock()?;
        let homes = Locked::all()?;
        let (replaced, _) = homes.remove_versions(None)?;
        homes.remove();
        mounts.unmount_unused();
        Ok(Switched {
            unchanged: replaced.is_empty(),
            replaced,
            distrusted: pins::look().distrusted,
            ..Switched::default()
        })
    }
}

/// Checks that what this process makes will belong to root: nothing else is trusted later.
fn check_root() -> Result<(), Refusal> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let missing = "user id 0 is missing, and pins have to belong to root".to_owned();
    Err(Refusal::NoPrivilege { missing })
}

/// Homes with their locks: nobody else changes anything in them.
#[derive(Debug)]
struct Locked(Vec<(Home, Lock)>);

impl Locked {
    /// Locks all homes that there are.
    ///
    /// # Errors
    /// As [`lock::lock`], and [`Error::Foreign`] where something in them is not lifemon's.
    fn all() -> Result<Self, Error> {
        let mut locked = Vec::new();
        for home in place::survey().homes {
            // One that was removed meanwhile holds nothing any more.
            if let Some(lock) = home.lock()? {
                versions(&home).map_err(Error::Foreign)?;
                locked.push((home, lock));
            }
        }
        Ok(Self(locked))
    }

    /// Adds a home, which may be among them already; its index, or `None` when it was removed
    /// meanwhile.
    fn add(&mut self, home: Home) -> Result<Option<usize>, Error> {
        let added = home.directory.identity().map_err(Error::Foreign)?;
        let known = |(known, _): &(Home, Lock)| known.directory.identity().ok() == Some(added);
        let index = match self.0.iter().position(known) {
            Some(index) => index,
            None => match home.lock()? {
                Some(lock) => {
                    self.0.push((home, lock));
                    self.0.len() - 1
                }
                None => return Ok(None),
            },
        };
        Ok(Some(index))
    }

    /// Removes all but a complete tracker of this version; where there is one, nothing changes.
    ///
    /// # Errors
    /// As [`Locked::look`] and [`Locked::remove_versions`].
    fn clear(&self, switched: &mut Switched) -> Result<(), Error> {
        let found = self.look()?;
        if let Found::Torn { missing } = &found {
            switched.repaired = Some(missing.clone());
        }
        let keep = match &found {
            Found::Complete { directory } => Some(directory.as_path()),
            _ => None,
        };
        let (removed, lost_since_ns) = self.remove_versions(keep)?;
        let is_told = |name: &String| switched.repaired.is_some() && *name == pins::own_name();
        let removed = removed.into_iter().filter(|name| !is_told(name));
        switched.replaced.extend(removed);
        switched.lost_since_ns = switched.lost_since_ns.or(lost_since_ns);
        switched.unchanged = keep.is_some();
        Ok(())
    }

    /// Pins a new tracker in a home that is found or made for it, unless another mount namespace
    /// was quicker.
    ///
    /// # Errors
    /// [`Error::NoPlace`], and whatever locking, loading or pinning fails with.
    fn pin_new(
        &mut self,
        mounts: &Mounts,
        switched: &mut Switched,
        options: &LoadOptions,
    ) -> Result<(), Error> {
        let home = loop {
            let new = place::make_home(mounts)?;
            (switched.mounted, switched.distrusted) =
                (switched.mounted.or(new.mounted), new.distrusted);
            // Another mount namespace may have removed it at once.
            if let Some(home) = self.add(new.home)? {
                break home;
            }
        };
        // Until it was locked, another mount namespace could switch on there.
        self.clear(switched)?;
        if switched.unchanged {
            return Ok(());
        }
        pins::pin(&self.0[home].0.directory, load::load(options)?)
    }

    /// Looks at what is in them.
    fn look(&self) -> Result<Found, Error> {
        let homes = self.0.iter().map(|(home, _)| home);
        found_in(homes).map_err(Error::Foreign)
    }

    /// Removes every version but the one at `keep`; returns the names of those that were removed,
    /// and the earliest time from which one of them had kept the lineage.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    fn remove_versions(&self, keep: Option<&Path>) -> Result<(Vec<String>, Option<u64>), Error> {
        let mut removed = Vec::new();
        let mut since_ns: Option<u64> = None;
        for (home, _) in &self.0 {
            for name in versions(home).map_err(Error::Foreign)? {
                if keep != Some(home.directory.path().join(&name).as_path()) {
                    remove_links(&home.directory, &name)?;
                    let ended = pins::tell_watchers(&home.directory, &name);
                    since_ns = since_ns.into_iter().chain(ended).min();
                    remove_rest(&home.directory, &name)?;
                    removed.push(name);
                }
            }
        }
        removed.extend(remove_stranded()?);
        Ok((removed, since_ns))
    }

    /// Removes the homes, which are empty.
    fn remove(self) {
        for (home, _lock) in self.0 {
            home.remove();
        }
    }
}

/// Removes what root has left in a home that it cannot trust any more; the paths.
fn remove_stranded() -> Result<Vec<String>, Error> {
    let Some((home, names)) = place::stranded(pins::is_version) else {
        return Ok(Vec::new());
    };
    let remove = |name: String| {
        remove_links(&home, &name)?;
        remove_rest(&home, &name)?;
        Ok(home.path().join(name).display().to_string())
    };
    names.into_iter().map(remove).collect()
}

/// Removes the links of a version, the exit hook last of them.
fn remove_links(home: &Directory, name: &str) -> Result<(), Error> {
    let name = Path::new(name);
    if let Some(version) = home.child(name).map_err(Error::Foreign)?
        && let Some(links) = version.child(Path::new("links")).map_err(Error::Foreign)?
    {
        let roles = [STAND_IN].into_iter().chain(ROLES.into_iter().rev());
        for role in roles {
            links.remove_file(Path::new(role)).map_err(Error::Pin)?;
        }
    }
    Ok(())
}

/// Removes what is left of a version without links.
fn remove_rest(home: &Directory, name: &str) -> Result<(), Error> {
    home.remove_tree(Path::new(name)).map_err(Error::Pin)
}

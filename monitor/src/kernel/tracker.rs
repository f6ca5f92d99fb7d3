//! A tracker, pinned or private: the open maps, snapshots of the lineage, and the passes.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifemon_ebpf::{ProcessId, Record, SUBREAPER, Traits};

use super::closer::Closer;
use super::hooks::{self, Role};
use super::load::{self, LoadOptions, Loaded};
use super::lock::{Lock, Patience};
use super::maps::TreeMaps;
use super::pins::{self, Found, Pins};
use super::recorder::{Log, Recorder};
use super::seat;
use super::shared::{Counters, PassView, Shared};
use super::slots::Slots;
use super::snapshot::{self, Snapshot};
use super::{Error, sys};

/// Tries to open a tracker that is being switched meanwhile.
const OPEN_TRIES: u32 = 5;

/// The open maps of a tracker, and how to run its passes.
pub struct Tracker {
    pub(super) lineage: OwnedFd,
    oom: OwnedFd,
    /// The slots of watched trees, and what is counted in them.
    pub(super) slots: Slots,
    pub(super) pass: Shared<PassView>,
    pub(super) recorder: Recorder,
    pub(super) hooks: Vec<(Role, OwnedFd)>,
    pub(super) sweep: OwnedFd,
    /// Of a pinned tracker alone: a private one ends before rows grow long.
    pub(super) compact: Option<OwnedFd>,
    pub(super) settle: OwnedFd,
    kept: Kept,
}

/// The owner of the links that keep the programs attached.
#[derive(Debug)]
enum Kept {
    /// This process: the tracker ends with it.
    Private(Loaded),
    /// The BPF file system.
    Pinned(Pins),
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("pinned", &self.is_pinned())
            .finish_non_exhaustive()
    }
}

/// The kernel's counts of one hook.
#[derive(Debug, Clone, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct HookCost {
    /// The hook.
    pub hook: &'static str,
    /// Runs while the kernel measured.
    pub runs: u64,
    /// Time of one run, in ns; absent when there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_run: Option<u64>,
    /// Runs that the kernel skipped, since the program was loaded.
    pub missed: u64,
}

impl Tracker {
    /// Opens the pinned tracker if there is one, otherwise loads a private one that ends with this
    /// process.
    ///
    /// # Errors
    /// [`Error::Refused`] where lifemon cannot work, and whatever loading fails with.
    pub fn open_or_load(options: &LoadOptions) -> Result<Self, Error> {
        super::preflight::check()?;
        match Self::open()? {
            Some(mut tracker) => {
                tracker.heal()?;
                Ok(tracker)
            }
            None => Self::load(options),
        }
    }

    /// Loads a private tracker.
    ///
    /// # Errors
    /// [`Error::Refused`] where lifemon cannot work, and whatever loading fails with.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let loaded = load::load(options)?;
        let map = |name| loaded.map(name)?.try_clone_to_owned().map_err(Error::Map);
        let (lineage, oom) = (map("LINEAGE")?, map("OOM_VICTIMS")?);
        let slots = Slots::new(TreeMaps::open(map)?);
        let recorder = Recorder::open(map)?;
        let pass = Shared::new(map("PASS")?, 1).map_err(Error::Map)?;
        let hooks = loaded.hook_programs()?;
        let sweep = loaded.program_fd("sweep")?;
        let settle = loaded.program_fd("settle")?;
        Ok(Self {
            lineage,
            oom,
            slots,
            pass,
            recorder,
            hooks,
            sweep,
            compact: None,
            settle,
            kept: Kept::Private(loaded),
        })
    }

    /// Opens the pinned tracker of this version, if it is on and complete.
    ///
    /// # Errors
    /// When it is there but cannot be opened.
    pub fn open() -> Result<Option<Self>, Error> {
        let mut tries = OPEN_TRIES;
        loop {
            tries -= 1;
            let pins = match Pins::open() {
                Ok(Some(pins)) => pins,
                Ok(None) => return Ok(None),
                // On, perhaps, and not readable for this user: [`pins::missing_history`] says so.
                Err(Error::Foreign(distrust)) if distrust.is_closed() => return Ok(None),
                // Switched off between the look and the opening: no lock is held here.
                Err(Error::Pin(_)) if !is_on() => return Ok(None),
                Err(error) => return Err(error),
            };
            // Switched off and on again meanwhile, its maps could be those of two trackers: what
            // stands under one path twice was there in between.
            match Self::open_pins(&pins) {
                Ok(open) if pins.is_current() => return Ok(Some(open(pins))),
                // Being switched off: links go first, the directory last.
                Err(Error::Pin(_)) if pins.is_current() && !is_on() => return Ok(None),
                Err(error) if pins.is_current() => return Err(error),
                Ok(_) if tries == 0 => return Ok(None),
                Err(error) if tries == 0 => return Err(error),
                _ => {}
            }
        }
    }

    fn open_pins(pins: &Pins) -> Result<impl FnOnce(Pins) -> Self + use<>, Error> {
        let map = |name| pins.map(name);
        let (lineage, oom) = (map("LINEAGE")?, map("OOM_VICTIMS")?);
        let slots = Slots::new(TreeMaps::open(map)?);
        let recorder = Recorder::open(map)?;
        let pass = Shared::new(map("PASS")?, 1).map_err(Error::Map)?;
        let (hooks, sweep, compact, settle) = (
            pins.hooks()?,
            pins.program("sweep")?,
            Some(pins.program("compact")?),
            pins.program("settle")?,
        );
        Ok(move |pins| Self {
            lineage,
            oom,
            slots,
            pass,
            recorder,
            hooks,
            sweep,
            compact,
            settle,
            kept: Kept::Pinned(pins),
        })
    }

    /// Returns whether this is the pinned tracker.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        matches!(self.kept, Kept::Pinned(_))
    }

    /// Returns whether the exit event comes before memory is released, and says which thread is the
    /// last (Linux 6.16 and newer). Known of a private tracker.
    #[must_use]
    pub fn has_group_dead(&self) -> bool {
        matches!(&self.kept, Kept::Private(loaded) if loaded.has_group_dead)
    }

    pub(super) fn since(&self) -> &AtomicU64 {
        &self.slots.host().since_ns
    }

    /// Returns when every process had been learnt, ns since boot; 0 once the tracker was switched
    /// off.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.since().load(Ordering::SeqCst)
    }

    /// Returns the number of records that fit.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn capacity(&self) -> Result<u32, Error> {
        let map = self.lineage.try_clone().map_err(Error::Map)?;
        let map = aya::maps::MapData::from_fd(map).and_then(|map| map.info());
        map.map(|info| info.max_entries())
            .map_err(|error| Error::Map(std::io::Error::other(error)))
    }

    /// Reads all records.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let lineage = self.lineage.as_fd();
        let records = sys::read_all(lineage).map_err(Error::Map)?;
        let read = |id: &ProcessId| sys::lookup(lineage, id);
        let (records, unsettled) = snapshot::complete(records, read).map_err(Error::Map)?;
        Ok(Snapshot {
            records,
            unsettled,
            since_ns: self.since_ns(),
            lost_records: self.host_counters().lost_records,
            missed_forks: self.missed_forks(),
            is_pinned: self.is_pinned(),
        })
    }

    /// Returns one record.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn record(&self, id: &ProcessId) -> Result<Option<Record>, Error> {
        sys::lookup(self.lineage.as_fd(), id).map_err(Error::Map)
    }

    /// Returns whether the out-of-memory killer has chosen this process.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn was_oom_victim(&self, id: &ProcessId) -> Result<bool, Error> {
        let marked: Option<u64> = sys::lookup(self.oom.as_fd(), &id.pid).map_err(Error::Map)?;
        Ok(marked.is_some_and(|at| at >= id.start_ns))
    }

    /// Reads the flight recorder.
    ///
    /// # Errors
    /// When its maps cannot be read.
    pub fn log(&self) -> Result<Log, Error> {
        self.recorder.read().map_err(Error::Map)
    }

    /// Returns the number of deaths that were recorded, and of those that were overwritten.
    #[must_use]
    pub fn log_counters(&self) -> (u64, u64) {
        self.recorder.counters()
    }

    /// Returns the counters of the whole host: forks, exits, records lost.
    #[must_use]
    pub fn host_counters(&self) -> Counters {
        self.slots.counters(0)
    }

    /// Gives back the slots of watchers that were killed; returns how many there were.
    ///
    /// # Errors
    /// When the lock cannot be taken or the maps cannot be accessed.
    pub fn reclaim_locked(&self) -> Result<usize, Error> {
        let _lock = self.lock(Patience::FULL)?;
        seat::reclaim(self)
    }

    /// Returns how many slots are in use.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.slots.watched()
    }

    /// Memberships of all trees.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn membership_count(&self) -> Result<usize, Error> {
        Ok(self.slots.memberships(|_| true)?.len())
    }

    /// Lets the kernel measure the hooks for `period`.
    ///
    /// # Errors
    /// When the kernel refuses to measure.
    pub fn measure(&self, period: Duration) -> Result<Vec<HookCost>, Error> {
        let read = || -> Result<Vec<_>, Error> {
            self.hooks
                .iter()
                .map(|(name, fd)| Ok((*name, sys::program_info(fd.as_fd()).map_err(Error::Map)?)))
                .collect()
        };
        let measuring = sys::enable_stats().map_err(Error::Map)?;
        let before = read()?;
        std::thread::sleep(period);
        let after = read()?;
        drop(measuring);
        Ok(before
            .into_iter()
            .zip(after)
            .map(|((hook, before), (_, after))| {
                let runs = after.run_cnt.saturating_sub(before.run_cnt);
                let time_ns = after.run_time_ns.saturating_sub(before.run_time_ns);
                let missed = after.recursion_misses;
                HookCost {
                    hook,
                    runs,
                    ns_per_run: time_ns.checked_div(runs),
                    missed,
                }
            })
            .collect())
    }

    /// Opens the closer.
    pub(super) fn closer(&self) -> Result<Closer, Error> {
        let program = match &self.kept {
            Kept::Pinned(pins) => pins.closer()?,
            Kept::Private(loaded) => {
                let name = hooks::closer(loaded.is_preemptible);
                let program = loaded.ebpf.program(name).ok_or(Error::NoProgram(name))?;
                let loaded = program.fd().map_err(|error| Error::load(name, &error))?;
                loaded.as_fd().try_clone_to_owned().map_err(Error::Map)?
            }
        };
        Ok(Closer::of(program))
    }

    /// Opens a pass over all processes.
    pub(super) fn open_pass(&mut self, name: &'static str) -> Result<File, Error> {
        match &mut self.kept {
            Kept::Private(loaded) => loaded.pass(name),
            Kept::Pinned(pins) => pins.pass(name),
        }
    }

    /// Returns the processes to which those are handed that are orphaned below them: no file says
    /// who they are, so the kernel half looks.
    ///
    /// # Errors
    /// When the pass cannot run.
    pub fn subreapers(&mut self) -> Result<HashSet<ProcessId>, Error> {
        let traits = sys::read_items::<Traits>(self.open_pass("traits")?).map_err(Error::Map)?;
        let subreapers = traits.into_iter();
        let subreapers = subreapers.filter(|found| found.traits & SUBREAPER != 0);
        Ok(subreapers.map(|found| found.process).collect())
    }

    /// Takes the lock of the pinned tracker. A private one has a single user and needs none.
    pub(super) fn lock(&self, patience: Patience) -> Result<Option<Lock>, Error> {
        match &self.kept {
            Kept::Private(_) => Ok(None),
            Kept::Pinned(pins) => pins.lock(patience).map(Some),
        }
    }

    /// Opens the debug messages of a private tracker, when it was loaded with them.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn debug_log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, Error> {
        let failed = |error: aya_log::Error| Error::Map(std::io::Error::other(error));
        if let Kept::Private(loaded) = &mut self.kept {
            return aya_log::EbpfLogger::init(&mut loaded.ebpf).map_err(failed);
        }
        let fork = self.hooks.iter().find(|(name, _)| *name == "fork");
        let (_, fork) = fork.ok_or(Error::NoProgram("fork"))?;
        let id = sys::program_info(fork.as_fd()).map_err(Error::Map)?.id;
        aya_log::EbpfLogger::init_from_id(id).map_err(failed)
    }
}

/// Returns whether a complete tracker of this version is pinned now.
fn is_on() -> bool {
    matches!(pins::look().found, Found::Complete { .. })
}

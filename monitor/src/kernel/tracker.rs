//! A tracker, pinned or private: the open maps, snapshots of the lineage, and the passes.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::programs::ProgramError;
use lifemon_ebpf::{
    Host, MemberKey, Membership, Pass, ProcessId, Record, SignalFact, Tree, limits,
};

use super::hooks::{self, Closer, Role};
use super::load::{self, LoadOptions, Loaded};
use super::lock::{Lock, Patience};
use super::pins::{self, Found, Pins};
use super::shared::{Shared, word64};
use super::snapshot::Snapshot;
use super::{Error, sys};

/// How often a tracker is opened anew that was switched in the middle of it.
const OPEN_TRIES: u32 = 5;

/// The open maps of a tracker, and how to run its passes.
pub struct Tracker {
    pub(super) lineage: OwnedFd,
    pub(super) members: OwnedFd,
    pub(super) roots: OwnedFd,
    pub(super) rings: OwnedFd,
    signals: OwnedFd,
    oom: OwnedFd,
    pub(super) trees: Shared<Tree>,
    pub(super) host: Shared<Host>,
    pub(super) pass: Shared<Pass>,
    pub(super) hooks: Vec<(Role, OwnedFd)>,
    sweep: OwnedFd,
    /// Where the kernel may skip exits.
    pub(super) settle: Option<OwnedFd>,
    kept: Kept,
}

/// What keeps the programs attached.
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

/// What the kernel counts about one hook.
#[derive(Debug, Clone, serde::Serialize)]
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
    /// The pinned tracker if there is one, otherwise a private one that ends with this process.
    ///
    /// # Errors
    /// [`Error::Refused`] where lifemon cannot work, and whatever loading fails with.
    pub fn open_or_load(options: &LoadOptions) -> Result<Self, Error> {
        super::preflight::check()?;
        match Self::open()? {
            Some(tracker) => {
                tracker.settle_all()?;
                Ok(tracker)
            }
            None => Self::load(options),
        }
    }

    /// A private tracker.
    ///
    /// # Errors
    /// [`Error::Refused`] where lifemon cannot work, and whatever loading fails with.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let loaded = load::load(options)?;
        let map = |name| loaded.map(name)?.try_clone_to_owned().map_err(Error::Map);
        let (lineage, members, roots) = (map("LINEAGE")?, map("MEMBERS")?, map("ROOTS")?);
        let (rings, signals, oom) = (map("RINGS")?, map("SIGNALS")?, map("OOM_VICTIMS")?);
        let trees = Shared::new(map("TREES")?, limits::TREE_SLOTS as usize).map_err(Error::Map)?;
        let host = Shared::new(map("HOST")?, 1).map_err(Error::Map)?;
        let pass = Shared::new(map("PASS")?, 1).map_err(Error::Map)?;
        let hooks = loaded.hook_programs()?;
        let sweep = loaded.program_fd("sweep")?;
        let settle = loaded
            .is_preemptible
            .then(|| loaded.program_fd("settle"))
            .transpose()?;
        Ok(Self {
            lineage,
            members,
            roots,
            rings,
            signals,
            oom,
            trees,
            host,
            pass,
            hooks,
            sweep,
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
        let (lineage, members, roots) = (map("LINEAGE")?, map("MEMBERS")?, map("ROOTS")?);
        let (rings, signals, oom) = (map("RINGS")?, map("SIGNALS")?, map("OOM_VICTIMS")?);
        let trees = Shared::new(map("TREES")?, limits::TREE_SLOTS as usize).map_err(Error::Map)?;
        let host = Shared::new(map("HOST")?, 1).map_err(Error::Map)?;
        let pass = Shared::new(map("PASS")?, 1).map_err(Error::Map)?;
        let (hooks, sweep, settle) = (pins.hooks()?, pins.program("sweep")?, pins.settle()?);
        Ok(move |pins| Self {
            lineage,
            members,
            roots,
            rings,
            signals,
            oom,
            trees,
            host,
            pass,
            hooks,
            sweep,
            settle,
            kept: Kept::Pinned(pins),
        })
    }

    /// Whether this is the pinned tracker.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        matches!(self.kept, Kept::Pinned(_))
    }

    /// Whether the exit event comes before memory is released, and says which thread is the last
    /// (Linux 6.16 and newer). Known of a private tracker.
    #[must_use]
    pub fn has_group_dead(&self) -> bool {
        matches!(&self.kept, Kept::Private(loaded) if loaded.has_group_dead)
    }

    pub(super) fn since(&self) -> &std::sync::atomic::AtomicU64 {
        // SAFETY: the mapping lives as long as `self`.
        unsafe { word64(&raw mut (*self.host.at(0)).since_ns) }
    }

    /// When every process had been learnt, ns since boot; 0 once the tracker was switched off.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.since().load(Ordering::SeqCst)
    }

    /// Records that fit.
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
        let records = sys::read_all(self.lineage.as_fd()).map_err(Error::Map)?;
        Ok(Snapshot {
            records,
            since_ns: self.since_ns(),
            lost_records: self.host_counters().lost_records,
            missed_forks: self.missed_forks(),
            is_pinned: self.is_pinned(),
        })
    }

    /// One record.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn record(&self, id: &ProcessId) -> Result<Option<Record>, Error> {
        sys::lookup(self.lineage.as_fd(), id).map_err(Error::Map)
    }

    /// The last fatal signal that was sent to `id`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn signal_fact(&self, id: &ProcessId) -> Result<Option<SignalFact>, Error> {
        sys::lookup(self.signals.as_fd(), id).map_err(Error::Map)
    }

    /// Whether the out-of-memory killer has chosen this process.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn was_oom_victim(&self, id: &ProcessId) -> Result<bool, Error> {
        let marked: Option<u64> = sys::lookup(self.oom.as_fd(), &id.pid).map_err(Error::Map)?;
        Ok(marked.is_some_and(|at| at >= id.start_ns))
    }

    /// Counters of the whole host: forks, exits, records lost.
    #[must_use]
    pub fn host_counters(&self) -> Counters {
        Counters::read(self.trees.at(0))
    }

    /// Live members of the tree in `slot` with `generation`.
    pub(super) fn members(&self, slot: u32, generation: u32) -> Result<Vec<MemberKey>, Error> {
        let wanted = Membership { slot, generation };
        let all = sys::read_all::<MemberKey, Membership>(self.members.as_fd());
        let all = all.map_err(Error::Map)?;
        Ok(all
            .into_iter()
            .filter(|(_, found)| *found == wanted)
            .map(|(key, _)| key)
            .collect())
    }

    /// Every membership of a slot, whatever its generation.
    pub(super) fn memberships_of(&self, slot: u32) -> Result<Vec<MemberKey>, Error> {
        let all = sys::read_all::<MemberKey, Membership>(self.members.as_fd());
        let all = all.map_err(Error::Map)?;
        Ok(all
            .into_iter()
            .filter(|(_, found)| found.slot == slot)
            .map(|(key, _)| key)
            .collect())
    }

    /// Memberships of all trees.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn membership_count(&self) -> Result<usize, Error> {
        let all = sys::read_all::<MemberKey, Membership>(self.members.as_fd());
        Ok(all.map_err(Error::Map)?.len())
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

    /// Removes records that nobody needs: what a death with very many ghosts had to leave.
    ///
    /// # Errors
    /// When the maps cannot be read or the sweep program cannot run.
    pub fn sweep(&self) -> Result<usize, Error> {
        load::sweep_unreferenced(self.sweep.as_fd(), self.lineage.as_fd()).map_err(Error::Map)
    }

    /// The closer program, opened for itself.
    pub(super) fn closer(&mut self) -> Result<Closer, Error> {
        let failed = |error: ProgramError| Error::load("closer", &error);
        let info = match &self.kept {
            Kept::Pinned(pins) => pins.closer()?,
            Kept::Private(loaded) => {
                let name = hooks::closer(loaded.is_preemptible);
                let program = loaded.ebpf.program(name);
                program
                    .ok_or(Error::NoProgram(name))?
                    .info()
                    .map_err(failed)?
            }
        };
        Closer::open(info).map_err(failed)
    }

    /// Runs one label pass over all processes.
    pub(super) fn label(&mut self) -> Result<(), Error> {
        match &mut self.kept {
            Kept::Private(loaded) => loaded.label(),
            Kept::Pinned(pins) => pins.label(),
        }
    }

    /// Takes the lock of the pinned tracker. A private one has a single user and needs none.
    pub(super) fn lock(&self, patience: Patience) -> Result<Option<Lock>, Error> {
        match &self.kept {
            Kept::Private(_) => Ok(None),
            Kept::Pinned(pins) => pins.lock(patience).map(Some),
        }
    }

    /// The debug messages of a private tracker, when it was loaded with them.
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

/// The counters of a slot at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Members alive.
    pub live: u64,
    /// Members created.
    pub forks: u64,
    /// Members that died.
    pub exits: u64,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Members that could not be inserted.
    pub lost_members: u64,
    /// Processes without a record.
    pub lost_records: u64,
}

impl Counters {
    /// Reads the counters of a slot.
    pub(super) fn read(tree: *mut Tree) -> Self {
        // SAFETY: `tree` points into a live mapping; the words are read atomically.
        unsafe {
            let read = |word: *mut u64| word64(word).load(Ordering::SeqCst);
            Self {
                live: read(&raw mut (*tree).live),
                forks: read(&raw mut (*tree).forks),
                exits: read(&raw mut (*tree).exits),
                lost_events: read(&raw mut (*tree).lost_events),
                lost_members: read(&raw mut (*tree).lost_members),
                lost_records: read(&raw mut (*tree).lost_records),
            }
        }
    }
}

impl Loaded {
    fn program_fd(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let program = self.ebpf.program(name).ok_or(Error::NoProgram(name))?;
        let fd = program.fd().map_err(|error| Error::load(name, &error))?;
        fd.as_fd().try_clone_to_owned().map_err(Error::Map)
    }

    fn hook_programs(&self) -> Result<Vec<(Role, OwnedFd)>, Error> {
        self.hooks
            .iter()
            .map(|hook| Ok((hook.role, self.program_fd(hook.program)?)))
            .collect()
    }
}

//! The core: holds the capabilities, accepts connections ([`connections`]), asks the kernel who is
//! there, and answers what the fronts ask in the name of a connection ([`asks`]).

mod answers;
mod asks;
mod connections;
mod events;
mod fronts;
mod guards;
mod kills;
mod permits;
mod waits;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::ProcessId;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Error, Tracker};

use super::audit::Audit;
use super::handles::Handles;
use super::limits::Limits;
use super::peer::Host;
use super::problem::{Code, Problem};
use super::trim::Trim;
use connections::Connection;
use events::Events;
use fronts::Fronts;
use guards::Guards;
use kills::Kills;

/// Answers that are made at once for all but the operator.
const ANSWERS_MAX: usize = 2;

/// The core.
pub(super) struct Core {
    host: Host,
    epoch: String,
    tracker: Mutex<Option<Tracker>>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next_connection: AtomicU64,
    answering: Semaphore,
    fronts: Fronts,
    limits: Arc<Limits>,
    handles: Handles,
    kills: Kills,
    guards: Guards,
    events: Events,
    audit: Audit,
    trim: Trim,
}

/// Locks, also after a panic of somebody else: what is locked here is whole at any time.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Makes the core; takes over what an agent before has left in the state.
    ///
    /// # Errors
    /// When the state cannot be read or the fronts cannot be started.
    pub(super) fn start(
        host: Host,
        epoch: String,
        tracker: Tracker,
        state: &Path,
        front: PathBuf,
    ) -> io::Result<Arc<Self>> {
        let core = Arc::new(Self {
            host,
            epoch,
            tracker: Mutex::new(Some(tracker)),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(1),
            answering: Semaphore::new(ANSWERS_MAX),
            fronts: Fronts::of_program(front),
            limits: Arc::default(),
            handles: Handles::default(),
            kills: Kills::open(state)?,
            guards: Guards::open(state)?,
            events: Events::default(),
            audit: Audit::open(),
            trim: Trim::default(),
        });
        core.fronts.start(&core)?;
        Guards::adopt(&core);
        let trims = Arc::clone(&core);
        tokio::spawn(async move { trims.trim.run().await });
        core.trim.note();
        Ok(core)
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    fn kills(&self) -> &Kills {
        &self.kills
    }

    fn guards(&self) -> &Guards {
        &self.guards
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn fronts(&self) -> &Fronts {
        &self.fronts
    }

    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Returns what changes with each start: events of another epoch are not these.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Reads all records.
    ///
    /// # Errors
    /// [`Code::Unavailable`] where the tracker is off.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.with_tracker(|tracker| tracker.snapshot())
    }

    /// Reads all records, and who adopts orphans.
    ///
    /// # Errors
    /// As [`Core::snapshot`].
    pub(super) fn snapshot_with_subreapers(
        &self,
    ) -> Result<(Snapshot, std::collections::HashSet<ProcessId>), Problem> {
        self.with_tracker(|tracker| Ok((tracker.snapshot()?, tracker.subreapers()?)))
    }

    /// Reads the flight recorder, and all records.
    ///
    /// # Errors
    /// As [`Core::snapshot`].
    fn log(&self) -> Result<(Log, Snapshot), Problem> {
        self.with_tracker(|tracker| Ok((tracker.log()?, tracker.snapshot()?)))
    }

    fn with_tracker<T>(
        &self,
        ask: impl FnOnce(&mut Tracker) -> Result<T, Error>,
    ) -> Result<T, Problem> {
        let mut tracker = lock(&self.tracker);
        if tracker
            .as_ref()
            .is_some_and(|tracker| tracker.since_ns() == 0)
        {
            *tracker = None;
        }
        if tracker.is_none() {
            *tracker = Tracker::open()?;
        }
        let off = || {
            let detail = "the tracker was switched off; `lifemon track on` switches it on";
            Problem::new(Code::Unavailable, detail)
        };
        let tracker = tracker.as_mut().ok_or_else(off)?;
        tracker.heal()?;
        Ok(ask(tracker)?)
    }
}

//! What labelling ([`super::label`]) and the taking of a slot ([`super::seat`]) see and do beside the
//! slots: a tracker, or in the tests a model.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lifemon_ebpf::{LIVE, Pass, ProcessId, Record};

use super::load::drain_iterator;
use super::maps::{Maps, TreeMaps};
use super::slots::Slots;
use super::snapshot::Snapshot;
use super::tracker::Tracker;
use super::{Error, clock};
use crate::proc;

/// The host as labelling sees it.
pub(super) trait Scene {
    /// The maps of its slots.
    type Maps: Maps;

    /// Returns the slots.
    fn slots(&self) -> &Slots<Self::Maps>;
    /// Reads one record.
    fn record(&self, id: &ProcessId) -> Result<Option<Record>, Error>;
    /// Reads all records.
    fn snapshot(&self) -> Result<Snapshot, Error>;
    /// Lets the kernel half label what it sees, to the end.
    fn run_label_pass(&mut self, wanted: &Pass) -> Result<Found, Error>;
    /// Removes what deaths have left behind while the tracker was learning.
    fn tidy(&self) -> Result<(), Error>;
    /// Returns whether the owner of a slot lives.
    fn is_watching(&self, owner: &ProcessId) -> Result<bool, Error>;
    /// Returns how far the kernel is in giving out pids; `None` where it does not say.
    fn pids(&self) -> Option<Pids>;
    /// Returns the time since boot.
    fn now(&self) -> Duration;
    /// Sleeps.
    fn pause(&self, time: Duration);

    /// Returns whether the record of this process is live.
    fn has_live_record(&self, id: &ProcessId) -> Result<bool, Error> {
        let record = self.record(id)?;
        Ok(record.is_some_and(|record| record.state == LIVE))
    }
}

/// The state of the giving out of pids: upwards, and from the beginning again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pids {
    /// The last one.
    pub(super) last: u32,
    /// The time that one turn takes at least.
    pub(super) turn: Duration,
}

/// The findings of a pass of the kernel half.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) inserted: u64,
    pub(super) unrecorded: u64,
    pub(super) unsettled: u64,
    pub(super) conflicts: u64,
}

impl Scene for Tracker {
    type Maps = TreeMaps;

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn record(&self, id: &ProcessId) -> Result<Option<Record>, Error> {
        Self::record(self, id)
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Self::snapshot(self)
    }

    fn run_label_pass(&mut self, wanted: &Pass) -> Result<Found, Error> {
        self.pass.at(0).ask(wanted);
        drain_iterator(self.open_pass("label")?).map_err(Error::Map)?;
        // The pass has ended: the iterator was read to its end.
        let found = self.pass.at(0);
        Ok(Found {
            inserted: found.inserted.load(Ordering::SeqCst),
            unrecorded: found.unrecorded.load(Ordering::SeqCst),
            unsettled: found.unsettled.load(Ordering::SeqCst),
            conflicts: found.conflicts.load(Ordering::SeqCst),
        })
    }

    fn tidy(&self) -> Result<(), Error> {
        // A pinned one has done it when it was switched on.
        if !self.is_pinned() {
            self.sweep()?;
        }
        Ok(())
    }

    /// Asks the record of the watcher: `/proc` may hide it.
    fn is_watching(&self, owner: &ProcessId) -> Result<bool, Error> {
        let record = self.record(owner)?;
        Ok(record.map_or_else(|| proc::is_live(*owner), |record| record.state == LIVE))
    }

    fn pids(&self) -> Option<Pids> {
        /// Below what the locks take that every new process and thread passes, one after another.
        const ONE: Duration = Duration::from_micros(1);
        let pids = proc::pid_turn()?;
        Some(Pids {
            last: pids.last,
            turn: ONE * pids.free,
        })
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(clock::boot_ns())
    }

    fn pause(&self, time: Duration) {
        thread::sleep(time);
    }
}

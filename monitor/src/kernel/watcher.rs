//! One watched tree: takes a slot, reads its events and counters, spares or condemns members, and
//! gives everything back when it is dropped.
//!
//! How it takes the slot stands in [`super::seat`].

use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::Ordering;

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use lifemon_ebpf::{Event, LIVE, MemberKey, Membership, ProcessId, limits};

use super::Error;
use super::closer::Closer;
use super::label::{Labelled, Tree, Unlabelled, label};
use super::lock::Patience;
use super::seat::{self, Seat};
use super::shared::Counters;
use super::slots::Rank;
use super::snapshot::Snapshot;
use super::tracker::Tracker;
use crate::proc;

/// Options of a watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Bytes of the ring; a power of two, at least a page.
    pub ring_bytes: u32,
    /// True for a kill: it takes a slot and a layer also where watchers have all that is theirs.
    pub is_for_kill: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            ring_bytes: limits::RING_BYTES,
            is_for_kill: false,
        }
    }
}

/// A watched tree. Dropping it gives the slot back.
pub struct Watcher {
    pub(super) tracker: Tracker,
    membership: Membership,
    pub(super) layer: u32,
    /// The root for which the slot is named, and others.
    pub(super) roots: Vec<ProcessId>,
    pub(super) spared: HashSet<ProcessId>,
    pub(super) ring: RingBuf<MapData>,
    pub(super) unlabelled: Unlabelled,
    /// The records as the last reading of labelling showed them.
    pub(super) first: Option<Snapshot>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("root", &self.root())
            .field("slot", &self.membership.slot)
            .finish_non_exhaustive()
    }
}

impl Tracker {
    /// Watches the tree of `root`, which may be a ghost. With it, as one, the trees of `others`,
    /// which are alive: those that have died already have nothing to watch.
    ///
    /// # Errors
    /// [`Error::NoProcess`] when the root has no record, [`Error::NoSlot`], [`Error::NoLayer`].
    pub fn watch(
        mut self,
        root: ProcessId,
        others: &[ProcessId],
        options: &WatchOptions,
    ) -> Result<Watcher, Error> {
        let _lock = self.lock(Patience::FULL)?;
        let ring = create_ring(options.ring_bytes)?;
        let roots: Vec<_> = [root].into_iter().chain(others.iter().copied()).collect();
        let seat = seat::take(&mut self, options.rank(), &roots, own_id, ring.as_fd())?;
        Ok(Watcher::new(self, roots, ring, seat))
    }

    /// Watches the trees of `roots` as one, from the first that has a record on; `None` where none
    /// has one.
    ///
    /// Race: that one can end before the slot is named for it, and takes its record along. Then it
    /// is the turn of the next, with this tracker: a new private one would not know what this one
    /// has seen.
    ///
    /// # Errors
    /// [`Error::NoSlot`], [`Error::NoLayer`].
    pub(crate) fn watch_any(
        mut self,
        mut roots: &[ProcessId],
        options: &WatchOptions,
    ) -> Result<Option<Watcher>, Error> {
        let _lock = self.lock(Patience::FULL)?;
        let ring = create_ring(options.ring_bytes)?;
        while let Some((first, others)) = roots.split_first() {
            if self.record(first)?.is_some() {
                match seat::take(&mut self, options.rank(), roots, own_id, ring.as_fd()) {
                    Ok(seat) => {
                        let watcher = Watcher::new(self, roots.to_vec(), ring, seat);
                        return Ok(Some(watcher));
                    }
                    Err(Error::NoProcess(_)) if self.record(first)?.is_none() => {}
                    Err(error) => return Err(error),
                }
            }
            roots = others;
        }
        Ok(None)
    }
}

impl WatchOptions {
    /// Returns the rank of the watch among others.
    fn rank(&self) -> Rank {
        if self.is_for_kill {
            Rank::Kill
        } else {
            Rank::Watcher
        }
    }
}

impl Watcher {
    /// Makes one of a slot that was taken.
    fn new(tracker: Tracker, roots: Vec<ProcessId>, ring: RingBuf<MapData>, seat: Seat) -> Self {
        Self {
            tracker,
            membership: seat.membership,
            layer: seat.layer,
            roots,
            spared: HashSet::new(),
            ring,
            unlabelled: seat.unlabelled,
            first: Some(seat.snapshot),
        }
    }

    /// Returns the watched root.
    #[must_use]
    pub fn root(&self) -> ProcessId {
        self.roots[0]
    }

    /// Returns the roots of the trees that are watched with it.
    pub(crate) fn others(&self) -> &[ProcessId] {
        &self.roots[1..]
    }

    /// Takes the records as they were read when the tree was labelled; later ones the second time.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn take_snapshot(&mut self) -> Result<Snapshot, Error> {
        match self.first.take() {
            Some(snapshot) => Ok(snapshot),
            None => self.tracker.snapshot(),
        }
    }

    /// Returns the tracker that this reads from.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Returns the tracker, to open its debug log.
    pub fn tracker_mut(&mut self) -> &mut Tracker {
        &mut self.tracker
    }

    /// Returns what the label passes could not settle.
    #[must_use]
    pub fn unlabelled(&self) -> Unlabelled {
        self.unlabelled
    }

    /// Returns the counters of the tree. `live == 0` is the proof that none of it can run again.
    /// Where the slot was taken away (this process was held for dead), nothing is known of the tree
    /// any more, and nothing is proven.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.tracker.slots.counters_of(self.membership)
    }

    /// Returns the living members.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn live_members(&self) -> Result<Vec<ProcessId>, Error> {
        let members = self.tracker.slots.members_of(self.membership)?;
        Ok(members.into_iter().collect())
    }

    /// Labels again, after members could not be inserted.
    ///
    /// # Errors
    /// When a pass cannot run.
    pub fn relabel(&mut self) -> Result<Unlabelled, Error> {
        let _lock = self.tracker.lock(Patience::FULL)?;
        let tree = Tree {
            membership: self.membership,
            layer: self.layer,
            roots: &self.roots,
            spared: &self.spared,
        };
        let labelled = label(&mut self.tracker, &tree)?;
        if let Labelled::Done(unlabelled, _) = labelled {
            self.unlabelled = unlabelled;
        }
        Ok(self.unlabelled)
    }

    /// Ends the memberships of the dead whose deletion the kernel refused to the exit hook; returns
    /// how many there were.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn settle_members(&self) -> Result<u64, Error> {
        let _lock = self.tracker.lock(Patience::FULL)?;
        let is_live = |id: &ProcessId| {
            let record = self.tracker.record(id)?;
            // One without a record may be alive: the map was full.
            Ok(record.map_or_else(|| !proc::is_gone(*id), |record| record.state == LIVE))
        };
        self.tracker.slots.settle(self.membership, is_live)
    }

    /// Takes what is in the ring, at most `limit` events; whether that emptied it.
    pub fn drain(&mut self, events: &mut Vec<Event>, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(item) = self.ring.next() else {
                return true;
            };
            if let Some(event) = decode(&item) {
                events.push(event);
            }
        }
        false
    }

    /// Asks to be woken by the next urgent event. After this the ring must be drained once more
    /// before sleeping.
    pub fn ask_for_wakeup(&self) {
        let tree = self.tracker.slots.tree(self.membership.slot);
        tree.sleeping.swap(1, Ordering::SeqCst);
    }

    /// Takes one process out of the tree, for itself and for what it creates from now on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn spare(&mut self, id: ProcessId) -> Result<(), Error> {
        // First: whoever labels again leaves it out.
        self.spared.insert(id);
        let key = MemberKey::new(id, self.layer);
        self.tracker.slots.spare(self.membership.slot, &key)
    }

    /// Condemns the tree, with a condemnation as the kernel half has it: once the closer is
    /// attached, no member returns to user code, and what a member has created dies before its
    /// first instruction. Undone when this is dropped.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn condemn(&self, condemnation: u64) -> Result<(), Error> {
        let _lock = self.tracker.lock(Patience::FULL)?;
        self.tracker
            .slots
            .condemn(self.membership.slot, condemnation);
        Ok(())
    }

    /// Returns the closer, not attached yet.
    ///
    /// # Errors
    /// When the program cannot be opened.
    pub fn closer(&mut self) -> Result<Closer, Error> {
        self.tracker.closer()
    }

    /// Returns whether the tracker was switched off under this watcher: no more events will come.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.tracker.since_ns() == 0 || !self.tracker.slots.is_own(self.membership)
    }
}

/// Readable when there is something urgent.
impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A private tracker goes as a whole.
        if !self.tracker.is_pinned() {
            return;
        }
        let lock = self.tracker.lock(Patience::SHORT);
        let give_back = |_lock| {
            // Otherwise it was taken away meanwhile.
            if self.tracker.slots.is_own(self.membership) {
                self.tracker.slots.give_back(self.membership.slot)?;
            }
            Ok(())
        };
        if let Err(error) = lock.and_then(give_back) {
            // The next command reclaims it: the owner is dead by then.
            log::warn!("slot {} was not given back: {error}", self.membership.slot);
        }
    }
}

/// Decodes an event from the bytes of a ring entry.
fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: long enough, and any bytes are a valid event; ring entries are 8-byte aligned but
    // that is not relied upon.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

/// Returns the identity of this process: from its record, or as exact as `/proc` has it.
fn own_id(snapshot: &Snapshot) -> Result<ProcessId, Error> {
    let pid = std::process::id();
    match snapshot.live(pid) {
        Some((id, _)) => Ok(*id),
        None => proc::identify(pid).ok_or_else(|| Error::NoProcess(pid.to_string())),
    }
}

/// Creates the ring of one watcher.
fn create_ring(bytes: u32) -> Result<RingBuf<MapData>, Error> {
    let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let ring = MapData::create(ring, "lifemon_ring", None);
    let ring = ring.map_err(|error| Error::load("a ring buffer", &error))?;
    RingBuf::try_from(Map::RingBuf(ring)).map_err(|error| Error::load("a ring buffer", &error))
}

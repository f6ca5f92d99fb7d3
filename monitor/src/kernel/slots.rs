//! The slots of watched trees: taken, labelled, given back, and reclaimed from watchers that were
//! killed. All under the lock of the tracker.
//!
//! The order of [`Tracker::watch`] is what makes the snapshot equal to an atomic one (I5): the slot
//! and its ring are there before the first label pass, so whatever a member does from the moment
//! when it is labelled is in the ring; and the passes go on until one of them inserts nothing and
//! meets no task whose fork hook is still under way.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use lifemon_ebpf::{LIVE, MemberKey, Membership, PASS_LABEL, Pass, ProcessId, limits};

use super::lock::Patience;
use super::shared::{word32, word64};
use super::tracker::Tracker;
use super::watcher::{Unlabelled, WatchOptions, Watcher};
use super::{Error, sys};
use crate::proc;

/// How long passes may find nothing to insert and still meet what is unsettled: a process is in the
/// list of all tasks a moment before its fork hook runs, and its creator can lose the processor in
/// between, on a busy machine for many milliseconds.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The pause after the first such pass, and the longest; each is twice the one before.
const SETTLE_PAUSES: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(20)];

/// Label passes that find something to insert; a tree that forks all the time settles in a few,
/// because what a labelled member forks is labelled by its fork hook.
const LABEL_PASSES: u32 = 64;

impl Tracker {
    /// Watches the tree of `root`, which may be a ghost. With it, as one, the trees of `others`, which
    /// are alive: those that have died already have nothing to watch.
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
        self.reclaim()?;
        let owner = self.own_id()?;
        let slot = self.free_slot().ok_or(Error::NoSlot)?;
        let ring = create_ring(options.ring_bytes)?;
        let mut taken = Err(Error::NoLayer);
        for layer in 0..limits::LAYERS {
            sys::update(self.roots.as_fd(), &root, &1_u64).map_err(Error::Map)?;
            let generation = self.take(slot, layer, root, owner);
            let ring_fd = ring.as_fd().as_raw_fd().cast_unsigned();
            // Waits until all running programs have ended: from here on every hook knows the slot,
            // its layer and its root.
            sys::update(self.rings.as_fd(), &slot, &ring_fd).map_err(Error::Map)?;
            if !self.is_pinned() {
                // What deaths have left behind while the tracker was learning.
                self.sweep()?;
            }
            if self.record(&root)?.is_none() {
                taken = Err(Error::NoProcess(root.pid.to_string()));
                break;
            }
            let membership = Membership { slot, generation };
            let labelled = match self.adopt(others, layer, membership) {
                Ok(true) => self.label_tree(slot, generation, layer, root),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            };
            match labelled {
                Ok(Some(unlabelled)) => {
                    taken = Ok((generation, layer, unlabelled));
                    break;
                }
                // Another tree of this layer overlaps: its members stay, ours go.
                Ok(None) => self.give_back(slot)?,
                Err(error) => {
                    taken = Err(error);
                    break;
                }
            }
        }
        match taken {
            Ok((generation, layer, unlabelled)) => Ok(Watcher {
                tracker: self,
                slot,
                generation,
                layer,
                root,
                ring,
                unlabelled,
            }),
            Err(error) => {
                self.give_back(slot)?;
                Err(error)
            }
        }
    }

    /// Makes these living processes members, before the label passes make their descendants so; false
    /// when another tree of the layer has one of them.
    ///
    /// As the label pass does it: count, insert, and take that back when the process has died
    /// meanwhile, because its exit hook may have looked before the insert. Both delete by key, and
    /// the delete that succeeds owns the decrement.
    fn adopt(
        &self,
        processes: &[ProcessId],
        layer: u32,
        membership: Membership,
    ) -> Result<bool, Error> {
        let tree = self.trees.at(membership.slot as usize);
        // SAFETY: the mapping lives as long as `self`.
        let live = unsafe { word64(&raw mut (*tree).live) };
        for process in processes {
            let key = MemberKey::new(*process, layer);
            live.fetch_add(1, Ordering::SeqCst);
            match sys::insert(self.members.as_fd(), &key, &membership) {
                Ok(true) => {}
                Ok(false) => {
                    live.fetch_sub(1, Ordering::SeqCst);
                    return Ok(false);
                }
                Err(error) => {
                    live.fetch_sub(1, Ordering::SeqCst);
                    return Err(Error::Map(error));
                }
            }
            let is_live = self
                .record(process)?
                .is_some_and(|record| record.state == LIVE);
            if !is_live && sys::delete(self.members.as_fd(), &key).map_err(Error::Map)? {
                live.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Ok(true)
    }

    /// Gives back the slots of watchers that were killed; how many.
    ///
    /// # Errors
    /// When the maps cannot be accessed.
    pub fn reclaim(&self) -> Result<usize, Error> {
        let mut reclaimed = 0;
        for slot in 1..limits::TREE_SLOTS {
            let (generation, owner) = self.slot_owner(slot);
            if generation % 2 == 1 && !proc::is_live(owner) {
                self.give_back(slot)?;
                reclaimed += 1;
            }
        }
        Ok(reclaimed)
    }

    /// As [`Tracker::reclaim`], taking the lock.
    ///
    /// # Errors
    /// When the maps cannot be accessed.
    pub fn reclaim_locked(&self) -> Result<usize, Error> {
        let _lock = self.lock(Patience::FULL)?;
        self.reclaim()
    }

    /// Slots in use.
    #[must_use]
    pub fn watched(&self) -> usize {
        (1..limits::TREE_SLOTS)
            .filter(|slot| self.slot_owner(*slot).0 % 2 == 1)
            .count()
    }

    fn slot_owner(&self, slot: u32) -> (u32, ProcessId) {
        let tree = self.trees.at(slot as usize);
        // SAFETY: the mapping lives as long as `self`; the owner is written under the lock, before
        // the generation.
        unsafe {
            let generation = word32(&raw mut (*tree).generation).load(Ordering::SeqCst);
            (generation, (&raw const (*tree).owner).read_volatile())
        }
    }

    fn free_slot(&self) -> Option<u32> {
        (1..limits::TREE_SLOTS).find(|slot| self.slot_owner(*slot).0.is_multiple_of(2))
    }

    /// Identity of this process: from its record, or as exact as `/proc` has it.
    fn own_id(&self) -> Result<ProcessId, Error> {
        let pid = std::process::id();
        match self.snapshot()?.live(pid) {
            Some((id, _)) => Ok(*id),
            None => proc::identify(pid).ok_or_else(|| Error::NoProcess(pid.to_string())),
        }
    }

    /// Takes a free slot; its new generation.
    fn take(&self, slot: u32, layer: u32, root: ProcessId, owner: ProcessId) -> u32 {
        let tree = self.trees.at(slot as usize);
        // SAFETY: the mapping lives as long as `self`. The slot is free and the lock is held: no
        // hook counts in it (the last release waited for all that did), nobody else takes it.
        unsafe {
            let generation = word32(&raw mut (*tree).generation);
            let taken = generation.load(Ordering::SeqCst).wrapping_add(1);
            for counter in [
                &raw mut (*tree).live,
                &raw mut (*tree).forks,
                &raw mut (*tree).execs,
                &raw mut (*tree).exits,
                &raw mut (*tree).condemned,
                &raw mut (*tree).lost_events,
                &raw mut (*tree).lost_members,
                &raw mut (*tree).lost_records,
                &raw mut (*tree).sleeping,
            ] {
                word64(counter).store(0, Ordering::SeqCst);
            }
            (*tree).root = root;
            (*tree).owner = owner;
            word32(&raw mut (*tree).layer).store(layer, Ordering::SeqCst);
            generation.store(taken, Ordering::SeqCst);
            word64(&raw mut (*self.host.at(0)).layers).fetch_or(1 << layer, Ordering::SeqCst);
            taken
        }
    }

    /// Gives a slot back: no new memberships from here on, then no hook that still uses it, then
    /// no memberships at all, and only then is it free. Whoever is killed on the way leaves a slot
    /// that is in use by nobody, and the next command goes on from there.
    pub(super) fn give_back(&self, slot: u32) -> Result<(), Error> {
        let tree = self.trees.at(slot as usize);
        // SAFETY: the mapping lives as long as `self`, and the lock is held.
        let (generation, root) = unsafe {
            (
                word32(&raw mut (*tree).generation),
                (&raw const (*tree).root).read_volatile(),
            )
        };
        let used = generation.load(Ordering::SeqCst);
        if used.is_multiple_of(2) {
            return Ok(());
        }
        // Still odd, but another one: every membership of the slot is stale.
        generation.store(used.wrapping_add(2), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe {
            (&raw mut (*tree).owner).write_volatile(ProcessId::NONE);
            word64(&raw mut (*tree).condemned).store(0, Ordering::SeqCst);
        }
        // Deleting waits until all running programs have ended; where nothing is left to delete,
        // somebody was killed just here.
        if !sys::delete(self.rings.as_fd(), &slot).map_err(Error::Map)? {
            sys::wait_for_running_programs().map_err(Error::Map)?;
        }
        for key in self.memberships_of(slot)? {
            sys::delete(self.members.as_fd(), &key).map_err(Error::Map)?;
        }
        generation.store(used.wrapping_add(3), Ordering::SeqCst);
        self.forget_root(root)?;
        self.refresh_layers();
        Ok(())
    }

    /// Removes the mark of a root that no slot watches any more.
    fn forget_root(&self, root: ProcessId) -> Result<(), Error> {
        let watched = (1..limits::TREE_SLOTS).any(|slot| {
            let tree = self.trees.at(slot as usize);
            // SAFETY: the mapping lives as long as `self`, and the lock is held.
            self.slot_owner(slot).0 % 2 == 1
                && unsafe { (&raw const (*tree).root).read_volatile() } == root
        });
        if !watched {
            sys::delete(self.roots.as_fd(), &root).map_err(Error::Map)?;
        }
        Ok(())
    }

    /// Sets the masks of layers to those of the slots in use, and of the condemned among them.
    pub(super) fn refresh_layers(&self) {
        let (mut layers, mut condemned) = (0, 0);
        for slot in (1..limits::TREE_SLOTS).filter(|slot| self.slot_owner(*slot).0 % 2 == 1) {
            let tree = self.trees.at(slot as usize);
            // SAFETY: the mapping lives as long as `self`.
            let (layer, is_condemned) = unsafe {
                (
                    word32(&raw mut (*tree).layer).load(Ordering::SeqCst),
                    word64(&raw mut (*tree).condemned).load(Ordering::SeqCst) != 0,
                )
            };
            layers |= 1 << layer;
            condemned |= u64::from(is_condemned) << layer;
        }
        // SAFETY: as above.
        unsafe {
            let host = self.host.at(0);
            word64(&raw mut (*host).layers).store(layers, Ordering::SeqCst);
            word64(&raw mut (*host).condemned_layers).store(condemned, Ordering::SeqCst);
        }
    }

    /// Labels the living members of the tree; nothing when another tree of the layer overlaps.
    pub(super) fn label_tree(
        &mut self,
        slot: u32,
        generation: u32,
        layer: u32,
        root: ProcessId,
    ) -> Result<Option<Unlabelled>, Error> {
        let mut left = Unlabelled {
            unrecorded: 0,
            unsettled: 0,
            failed: 0,
        };
        let mut busy = 0;
        let mut pause = SETTLE_PAUSES[0];
        let mut idle_since = None;
        while busy < LABEL_PASSES {
            // SAFETY: one pass runs at a time (the lock is held), and none runs now.
            unsafe {
                let kind = PASS_LABEL;
                *self.pass.at(0) = Pass {
                    kind,
                    slot,
                    generation,
                    layer,
                    root,
                    ..Pass::default()
                };
            }
            self.label()?;
            // SAFETY: the pass has ended: the iterator was read to its end.
            let found = unsafe { self.pass.at(0).read_volatile() };
            if found.conflicts > 0 {
                return Ok(None);
            }
            left = Unlabelled {
                unrecorded: found.unrecorded,
                unsettled: found.unsettled,
                failed: found.failed,
            };
            if found.inserted > 0 {
                busy += 1;
                idle_since = None;
                continue;
            }
            // What has no record because the lineage map was full will not get one.
            let is_final = self.host_counters().lost_records > 0;
            let since = *idle_since.get_or_insert_with(Instant::now);
            let is_settled = left.is_complete() || found.failed > 0;
            if is_settled || is_final || since.elapsed() >= SETTLE_TIME {
                break;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(SETTLE_PAUSES[1]);
        }
        Ok(Some(left))
    }
}

/// A ring of its own, for one watcher.
fn create_ring(bytes: u32) -> Result<RingBuf<MapData>, Error> {
    let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let ring = MapData::create(ring, "lifemon_ring", None);
    let ring = ring.map_err(|error| Error::load("a ring buffer", &error))?;
    RingBuf::try_from(Map::RingBuf(ring)).map_err(|error| Error::load("a ring buffer", &error))
}

//! The slots of watched trees: taken, given back, and reclaimed from watchers that were killed,
//! with the layers of their memberships. All changes are made under the lock of the tracker.

use std::collections::HashSet;
use std::sync::atomic::{Ordering, fence};

use lifemon_ebpf::{MemberKey, Membership, ProcessId, limits};

use super::Error;
use super::maps::{Maps, TreeMaps};
use super::shared::{Counters, HostView, TreeView};

/// What a slot is taken for: kills have some for themselves, and a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// To watch.
    Watcher,
    /// To kill.
    Kill,
}

/// The result of making a process a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// It is one, or it has died.
    Yes,
    /// Another tree of the layer has it.
    Overlaps,
    /// The map is full.
    Full,
}

/// The slots of a tracker: counters and owners in shared memory, rings, roots and memberships.
pub(super) struct Slots<M = TreeMaps> {
    maps: M,
}

impl<M: Maps> Slots<M> {
    /// Returns the slots in these maps.
    pub(super) const fn new(maps: M) -> Self {
        Self { maps }
    }

    /// Returns the maps.
    #[cfg(test)]
    pub(super) const fn maps(&self) -> &M {
        &self.maps
    }

    /// Returns the shared memory of a slot; slot 0 is the host.
    pub(super) fn tree(&self, slot: u32) -> &TreeView {
        self.maps.tree(slot)
    }

    /// Returns what holds for the whole tracker.
    pub(super) fn host(&self) -> &HostView {
        self.maps.host()
    }

    /// Reads the counters of a slot.
    pub(super) fn counters(&self, slot: u32) -> Counters {
        Counters::read(self.tree(slot))
    }

    /// Marks `root` as one whose ghost stays.
    pub(super) fn keep_root(&self, root: ProcessId) -> Result<(), Error> {
        self.maps.mark_root(&root).map_err(Error::Map)
    }

    /// Brings the ring of a slot. Waits until all running programs have ended: from here on every
    /// hook knows the slot, its layer and its root.
    pub(super) fn set_ring(&self, slot: u32, ring: M::Ring<'_>) -> Result<(), Error> {
        self.maps.set_ring(slot, ring).map_err(Error::Map)
    }

    /// Makes a living process a member.
    ///
    /// As the fork hook does it: count, insert, and take that back when the process has died
    /// meanwhile, because its exit hook may have looked before the insertion. The exit hook marks
    /// the record dead before it looks, and here the record is read after the insertion: so one of
    /// the two sees the other. Both delete by key, and the delete that succeeds owns the decrement
    /// (I2). `is_live` says whether the record is live.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub(super) fn add(
        &self,
        process: &ProcessId,
        layer: u32,
        membership: Membership,
        is_live: impl Fn() -> Result<bool, Error>,
    ) -> Result<Added, Error> {
        let live = || &self.tree(membership.slot).live;
        let key = MemberKey::new(*process, layer);
        // Counted before it is inserted: the counter never under-counts (I1).
        live().fetch_add(1, Ordering::SeqCst);
        let inserted = loop {
            match self.maps.insert_member(&key, membership) {
                Ok(true) => break true,
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                    live().fetch_sub(1, Ordering::SeqCst);
                    return Ok(Added::Full);
                }
                Err(error) => {
                    live().fetch_sub(1, Ordering::SeqCst);
                    return Err(Error::Map(error));
                }
            }
            match self.maps.member(&key).map_err(Error::Map)? {
                Some(found) if found == membership => break false,
                Some(found) if self.generation(found.slot) == found.generation => {
                    live().fetch_sub(1, Ordering::SeqCst);
                    return Ok(Added::Overlaps);
                }
                // Of a tree that nobody watches any more.
                Some(_) => {
                    self.maps.delete_member(&key).map_err(Error::Map)?;
                }
                // It has died since, or the stale one has just gone.
                None if !is_live()? => break false,
                None => {}
            }
        };
        if !inserted {
            live().fetch_sub(1, Ordering::SeqCst);
            return Ok(Added::Yes);
        }
        // The insertion is to be seen before the record is read.
        fence(Ordering::SeqCst);
        if !is_live()? && self.maps.delete_member(&key).map_err(Error::Map)? {
            live().fetch_sub(1, Ordering::SeqCst);
        }
        Ok(Added::Yes)
    }

    /// Returns the layers for a new tree, those first in which nobody of `living` is a member.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn layers(&self, rank: Rank, living: &[ProcessId]) -> Result<Vec<u32>, Error> {
        let living: HashSet<_> = living.iter().collect();
        let all = self.maps.members();
        let mut taken = 0_u64;
        for (key, found) in all.map_err(Error::Map)? {
            if living.contains(&key.process) && self.generation(found.slot) == found.generation {
                taken |= 1 << key.layer;
            }
        }
        let last = match rank {
            Rank::Watcher => limits::LAYERS - 1,
            Rank::Kill => limits::LAYERS,
        };
        Ok((0..last).filter(|layer| taken >> layer & 1 == 0).collect())
    }

    /// Gives back the slots of watchers that were killed, and forgets the roots that they had
    /// marked; returns how many slots there were. `is_live` says whether a watcher lives.
    ///
    /// # Errors
    /// When the maps cannot be accessed.
    pub(super) fn reclaim(
        &self,
        is_live: impl Fn(ProcessId) -> Result<bool, Error>,
    ) -> Result<usize, Error> {
        let mut reclaimed = 0;
        for slot in self.in_use() {
            if !is_live(self.tree(slot).owner.get())? {
                self.give_back(slot)?;
                reclaimed += 1;
            }
        }
        // Also where there was no slot to give back: whoever gave one back can have been killed when
        // it was free, and its mark and its layer were not.
        self.forget_roots()?;
        self.refresh_layers();
        Ok(reclaimed)
    }

    /// Returns how many slots are in use.
    pub(super) fn watched(&self) -> usize {
        self.in_use().count()
    }

    fn in_use(&self) -> impl Iterator<Item = u32> {
        (1..limits::TREE_SLOTS).filter(|slot| self.is_used(*slot))
    }

    /// Returns whether a slot is in use: then its generation is odd.
    fn is_used(&self, slot: u32) -> bool {
        !self.generation(slot).is_multiple_of(2)
    }

    fn generation(&self, slot: u32) -> u32 {
        self.tree(slot).generation.load(Ordering::SeqCst)
    }

    /// Finds a slot that nobody uses; for a watcher only while more are left than kills may need.
    pub(super) fn free(&self, rank: Rank) -> Option<u32> {
        let kept = match rank {
            Rank::Watcher => limits::KILL_SLOTS as usize,
            Rank::Kill => 0,
        };
        let mut free = (1..limits::TREE_SLOTS).filter(|slot| !self.is_used(*slot));
        free.clone().nth(kept).and(free.next())
    }

    /// Takes a free slot; returns its new generation.
    ///
    /// No hook counts in a free slot (giving it back waited for all that did), and nobody else
    /// takes it, because the lock is held.
    pub(super) fn take(&self, slot: u32, layer: u32, root: ProcessId, owner: ProcessId) -> u32 {
        let tree = || self.tree(slot);
        let taken = self.generation(slot).wrapping_add(1);
        let counted = tree();
        let counters = [
            &counted.live,
            &counted.forks,
            &counted.execs,
            &counted.exits,
            &counted.condemned,
            &counted.lost_events,
            &counted.lost_members,
            &counted.lost_records,
            &counted.sleeping,
        ];
        for counter in counters {
            counter.store(0, Ordering::SeqCst);
        }
        tree().root.set(root);
        tree().owner.set(owner);
        tree().layer.store(layer, Ordering::SeqCst);
        // Last: from here on the slot is in use, and all above counts.
        tree().generation.store(taken, Ordering::SeqCst);
        self.host().layers.fetch_or(1 << layer, Ordering::SeqCst);
        taken
    }

    /// Gives a slot back: no new memberships from here on, then no hook that still uses it, then
    /// no memberships at all, and only then is it free. Whoever is killed on the way leaves a slot
    /// that is in use by nobody, and the next command goes on from there.
    pub(super) fn give_back(&self, slot: u32) -> Result<(), Error> {
        let tree = || self.tree(slot);
        let used = self.generation(slot);
        if used.is_multiple_of(2) {
            return Ok(());
        }
        // Still odd, but another one: every membership of the slot is stale.
        tree()
            .generation
            .store(used.wrapping_add(2), Ordering::SeqCst);
        tree().owner.set(ProcessId::NONE);
        tree().condemned.store(0, Ordering::SeqCst);
        // Deleting waits until all running programs have ended; where nothing is left to delete,
        // somebody was killed just here.
        if !self.maps.delete_ring(slot).map_err(Error::Map)? {
            self.maps.wait_for_running_programs().map_err(Error::Map)?;
        }
        for key in self.memberships(|found| found.slot == slot)? {
            self.maps.delete_member(&key).map_err(Error::Map)?;
        }
        tree()
            .generation
            .store(used.wrapping_add(3), Ordering::SeqCst);
        self.forget_roots()?;
        self.refresh_layers();
        Ok(())
    }

    /// Removes the marks of roots that no slot watches any more, those of watchers among them that
    /// were killed before they had a slot.
    fn forget_roots(&self) -> Result<(), Error> {
        let watched: HashSet<_> = self
            .in_use()
            .map(|slot| self.tree(slot).root.get())
            .collect();
        let marked = self.maps.roots().map_err(Error::Map)?;
        for root in marked.iter().filter(|root| !watched.contains(root)) {
            self.maps.unmark_root(root).map_err(Error::Map)?;
        }
        Ok(())
    }

    /// Reads the counters of a tree. Where its slot was taken away (its watcher was held for dead),
    /// nothing is known of the tree any more, and nothing is proven.
    pub(super) fn counters_of(&self, membership: Membership) -> Counters {
        let counters = self.counters(membership.slot);
        // After the counters: they are this tree's if the slot still is.
        if self.is_own(membership) {
            counters
        } else {
            Counters {
                live: u64::MAX,
                ..Counters::default()
            }
        }
    }

    /// Returns whether a slot still belongs to who took it with this generation.
    pub(super) fn is_own(&self, membership: Membership) -> bool {
        self.generation(membership.slot) == membership.generation
    }

    /// Returns the members of one tree.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn members_of(&self, membership: Membership) -> Result<HashSet<ProcessId>, Error> {
        let keys = self.memberships(|found| *found == membership)?.into_iter();
        Ok(keys.map(|key| key.process).collect())
    }

    /// Ends the memberships of those whose deletion the kernel refused to the exit hook; returns
    /// how many there were. `is_live` says whether the record of a member is live.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub(super) fn settle(
        &self,
        membership: Membership,
        is_live: impl Fn(&ProcessId) -> Result<bool, Error>,
    ) -> Result<u64, Error> {
        let mut settled = 0;
        for key in self.memberships(|found| *found == membership)? {
            // The delete that succeeds owns the decrement (I2).
            if !is_live(&key.process)? && self.maps.delete_member(&key).map_err(Error::Map)? {
                self.tree(membership.slot)
                    .live
                    .fetch_sub(1, Ordering::SeqCst);
                settled += 1;
            }
        }
        Ok(settled)
    }

    /// Condemns the tree of a slot.
    pub(super) fn condemn(&self, slot: u32, condemnation: u64) {
        self.tree(slot)
            .condemned
            .store(condemnation, Ordering::SeqCst);
        self.refresh_layers();
    }

    /// Sets the masks of layers to those of the slots in use, and of the condemned among them.
    fn refresh_layers(&self) {
        let (mut layers, mut condemned) = (0, 0);
        for tree in self.in_use().map(|slot| self.tree(slot)) {
            let layer = tree.layer.load(Ordering::SeqCst);
            let is_condemned = tree.condemned.load(Ordering::SeqCst) != 0;
            layers |= 1 << layer;
            condemned |= u64::from(is_condemned) << layer;
        }
        let host = self.host();
        host.layers.store(layers, Ordering::SeqCst);
        host.condemned_layers.store(condemned, Ordering::SeqCst);
    }

    /// Takes one process out of the tree of a slot.
    pub(super) fn spare(&self, slot: u32, key: &MemberKey) -> Result<(), Error> {
        // The delete that succeeds owns the decrement (I2).
        if self.maps.delete_member(key).map_err(Error::Map)? {
            self.tree(slot).live.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Returns the keys of all memberships that `is_wanted` picks.
    pub(super) fn memberships(
        &self,
        is_wanted: impl Fn(&Membership) -> bool,
    ) -> Result<Vec<MemberKey>, Error> {
        let all = self.maps.members();
        let all = all.map_err(Error::Map)?.into_iter();
        let wanted = all.filter(|(_, found)| is_wanted(found));
        Ok(wanted.map(|(key, _)| key).collect())
    }
}

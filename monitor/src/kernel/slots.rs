//! The slots of watched trees: taken, given back, and reclaimed from watchers that were killed,
//! with the layers of their memberships. All changes are made under the lock of the tracker.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use lifemon_ebpf::{MemberKey, Membership, ProcessId, limits};

use super::shared::{Counters, HostView, Shared, TreeView};
use super::{Error, sys};

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
pub(super) struct Slots {
    trees: Shared<TreeView>,
    host: Shared<HostView>,
    members: OwnedFd,
    roots: OwnedFd,
    rings: OwnedFd,
}

impl Slots {
    /// Opens the maps, which `map` gives by their names.
    ///
    /// # Errors
    /// When `map` fails, or a map cannot be mapped.
    pub(super) fn open(
        map: impl Fn(&'static str) -> Result<OwnedFd, Error>,
    ) -> Result<Self, Error> {
        let trees = Shared::new(map("TREES")?, limits::TREE_SLOTS as usize).map_err(Error::Map)?;
        Ok(Self {
            trees,
            host: Shared::new(map("HOST")?, 1).map_err(Error::Map)?,
            members: map("MEMBERS")?,
            roots: map("ROOTS")?,
            rings: map("RINGS")?,
        })
    }

    /// Returns the shared memory of a slot; slot 0 is the host.
    pub(super) fn tree(&self, slot: u32) -> &TreeView {
        self.trees.at(slot as usize)
    }

    /// Returns what holds for the whole tracker.
    pub(super) fn host(&self) -> &HostView {
        self.host.at(0)
    }

    /// Reads the counters of a slot.
    pub(super) fn counters(&self, slot: u32) -> Counters {
        Counters::read(self.tree(slot))
    }

    /// Marks `root` as one whose ghost stays.
    pub(super) fn keep_root(&self, root: ProcessId) -> Result<(), Error> {
        sys::update(self.roots.as_fd(), &root, &1_u64).map_err(Error::Map)
    }

    /// Brings the ring of a slot. Waits until all running programs have ended: from here on every
    /// hook knows the slot, its layer and its root.
    /// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n145>
    pub(super) fn set_ring(&self, slot: u32, ring: BorrowedFd<'_>) -> Result<(), Error> {
        let ring = ring.as_raw_fd().cast_unsigned();
        sys::update(self.rings.as_fd(), &slot, &ring).map_err(Error::Map)
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
        let members = self.members.as_fd();
        let live = &self.tree(membership.slot).live;
        let key = MemberKey::new(*process, layer);
        // Counted before it is inserted: the counter never under-counts (I1).
        live.fetch_add(1, Ordering::SeqCst);
        let inserted = loop {
            match sys::insert(members, &key, &membership) {
                Ok(true) => break true,
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                    live.fetch_sub(1, Ordering::SeqCst);
                    return Ok(Added::Full);
                }
                Err(error) => {
                    live.fetch_sub(1, Ordering::SeqCst);
                    return Err(Error::Map(error));
                }
            }
            match sys::lookup::<_, Membership>(members, &key).map_err(Error::Map)? {
                Some(found) if found == membership => break false,
                Some(found) if self.generation(found.slot) == found.generation => {
                    live.fetch_sub(1, Ordering::SeqCst);
                    return Ok(Added::Overlaps);
                }
                // Of a tree that nobody watches any more.
                Some(_) => {
                    sys::delete(members, &key).map_err(Error::Map)?;
                }
                // It has died since, or the stale one has just gone.
                None if !is_live()? => break false,
                None => {}
            }
        };
        if !inserted {
            live.fetch_sub(1, Ordering::SeqCst);
            return Ok(Added::Yes);
        }
        // The insertion is to be seen before the record is read.
        fence(Ordering::SeqCst);
        if !is_live()? && sys::delete(members, &key).map_err(Error::Map)? {
            live.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(Added::Yes)
    }

    /// Returns the layers for a new tree, those first in which nobody of `living` is a member.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn layers(&self, rank: Rank, living: &[ProcessId]) -> Result<Vec<u32>, Error> {
        let living: HashSet<_> = living.iter().collect();
        let all = sys::read_all::<MemberKey, Membership>(self.members.as_fd());
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
        self.forget_roots()?;
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
        let tree = self.tree(slot);
        let taken = self.generation(slot).wrapping_add(1);
        let counters = [
            &tree.live,
            &tree.forks,
            &tree.execs,
            &tree.exits,
            &tree.condemned,
            &tree.lost_events,
            &tree.lost_members,
            &tree.lost_records,
            &tree.sleeping,
        ];
        for counter in counters {
            counter.store(0, Ordering::SeqCst);
        }
        tree.root.set(root);
        tree.owner.set(owner);
        tree.layer.store(layer, Ordering::SeqCst);
        // Last: from here on the slot is in use, and all above counts.
        tree.generation.store(taken, Ordering::SeqCst);
        self.host().layers.fetch_or(1 << layer, Ordering::SeqCst);
        taken
    }

    /// Gives a slot back: no new memberships from here on, then no hook that still uses it, then
    /// no memberships at all, and only then is it free. Whoever is killed on the way leaves a slot
    /// that is in use by nobody, and the next command goes on from there.
    pub(super) fn give_back(&self, slot: u32) -> Result<(), Error> {
        let tree = self.tree(slot);
        let used = self.generation(slot);
        if used.is_multiple_of(2) {
            return Ok(());
        }
        // Still odd, but another one: every membership of the slot is stale.
        tree.generation
            .store(used.wrapping_add(2), Ordering::SeqCst);
        tree.owner.set(ProcessId::NONE);
        tree.condemned.store(0, Ordering::SeqCst);
        // Deleting waits until all running programs have ended; where nothing is left to delete,
        // somebody was killed just here.
        // <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n157>
        if !sys::delete(self.rings.as_fd(), &slot).map_err(Error::Map)? {
            sys::wait_for_running_programs().map_err(Error::Map)?;
        }
        for key in self.memberships(|found| found.slot == slot)? {
            sys::delete(self.members.as_fd(), &key).map_err(Error::Map)?;
        }
        tree.generation
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
        let marked = sys::read_all::<ProcessId, u64>(self.roots.as_fd()).map_err(Error::Map)?;
        for (root, _) in marked.iter().filter(|(root, _)| !watched.contains(root)) {
            sys::delete(self.roots.as_fd(), root).map_err(Error::Map)?;
        }
        Ok(())
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
            if !is_live(&key.process)?
                && sys::delete(self.members.as_fd(), &key).map_err(Error::Map)?
            {
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
        if sys::delete(self.members.as_fd(), key).map_err(Error::Map)? {
            self.tree(slot).live.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Returns the keys of all memberships that `is_wanted` picks.
    pub(super) fn memberships(
        &self,
        is_wanted: impl Fn(&Membership) -> bool,
    ) -> Result<Vec<MemberKey>, Error> {
        let all = sys::read_all::<MemberKey, Membership>(self.members.as_fd());
        let all = all.map_err(Error::Map)?.into_iter();
        let wanted = all.filter(|(_, found)| is_wanted(found));
        Ok(wanted.map(|(key, _)| key).collect())
    }
}

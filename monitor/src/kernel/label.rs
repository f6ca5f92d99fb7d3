//! The start of a watch: takes a slot, and labels the members of the tree.
//!
//! The order of [`Tracker::watch`] is what makes the snapshot equal to an atomic one (I5). Slot and
//! ring come first: whatever a member does from the moment when it is labelled is in the ring. Then
//! the records are read and what descends from the root is labelled, again and again until a
//! reading that begins after the last label shows nobody new. A process that this misses would have
//! been created by somebody who was no member then; so its record was there before its creator was
//! labelled, and the reading after that has it. Nothing depends on how deep a tree is or in which
//! order the kernel lists processes.
//!
//! In the kernel:
//! - An update of an array of maps returns after every running program has ended:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n145>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n157>

use std::collections::HashSet;
use std::os::fd::AsFd as _;

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use lifemon_ebpf::{LIVE, Membership, ProcessId};

use super::Error;
use super::lock::Patience;
use super::slots::{Added, Rank};
use super::snapshot::Snapshot;
use super::tracker::Tracker;
use super::watcher::{Unlabelled, WatchOptions, Watcher};
use crate::forest::Forest;
use crate::proc;

/// Readings that find somebody to label. A tree that forks all the time settles in a few, because
/// what a member forks is labelled by its fork hook.
const ROUNDS: u32 = 64;

/// What is labelled.
pub(super) struct Tree<'a> {
    pub(super) membership: Membership,
    pub(super) layer: u32,
    /// The roots: one for which the slot is named, and others.
    pub(super) roots: &'a [ProcessId],
    /// Those who are no members, nor what they create.
    pub(super) spared: &'a HashSet<ProcessId>,
}

/// The end of labelling.
pub(super) enum Labelled {
    /// Whoever could be labelled is, as the last reading shows.
    Done(Unlabelled, Snapshot),
    /// Another tree of the layer has one of them.
    Overlaps,
}

impl Tracker {
    /// Watches the tree of `root`, which may be a ghost. With it, as one, the trees of `others`,
    /// which are alive: those that have died already have nothing to watch.
    ///
    /// # Errors
    /// [`Error::NoProcess`] when the root has no record, [`Error::NoSlot`], [`Error::NoLayer`].
    pub fn watch(
        self,
        root: ProcessId,
        others: &[ProcessId],
        options: &WatchOptions,
    ) -> Result<Watcher, Error> {
        let _lock = self.lock(Patience::FULL)?;
        self.reclaim()?;
        let first = self.snapshot()?;
        let owner = own_id(&first)?;
        let rank = if options.is_for_kill {
            Rank::Kill
        } else {
            Rank::Watcher
        };
        let slot = self.slots.free(rank).ok_or(Error::NoSlot)?;
        let ring = create_ring(options.ring_bytes)?;
        let roots: Vec<_> = [root].into_iter().chain(others.iter().copied()).collect();
        let spared = HashSet::new();
        let taken = below(&first, &roots, &HashSet::new(), &spared);
        for layer in self.slots.layers(rank, &taken.living)? {
            self.slots.keep_root(root)?;
            let generation = self.slots.take(slot, layer, root, owner);
            let membership = Membership { slot, generation };
            // Slot and ring first: whatever a member does once it is labelled is in the ring (I5).
            let labelled = self.slots.set_ring(slot, ring.as_fd()).and_then(|()| {
                if !self.is_pinned() {
                    // What deaths have left behind while the tracker was learning.
                    self.sweep()?;
                }
                if self.record(&root)?.is_none() {
                    return Err(Error::NoProcess(root.pid.to_string()));
                }
                self.label(&Tree {
                    membership,
                    layer,
                    roots: &roots,
                    spared: &spared,
                })
            });
            match labelled {
                Ok(Labelled::Done(unlabelled, snapshot)) => {
                    return Ok(Watcher {
                        tracker: self,
                        slot,
                        generation,
                        layer,
                        roots,
                        spared,
                        ring,
                        unlabelled,
                        first: Some(snapshot),
                    });
                }
                // Another tree of this layer overlaps: its members stay, ours go.
                Ok(Labelled::Overlaps) => self.slots.give_back(slot)?,
                Err(error) => {
                    self.slots.give_back(slot)?;
                    return Err(error);
                }
            }
        }
        Err(Error::NoLayer)
    }

    /// Labels the living members of a tree.
    pub(super) fn label(&self, tree: &Tree<'_>) -> Result<Labelled, Error> {
        let mut failed = 0;
        let mut round = 0;
        loop {
            round += 1;
            let snapshot = self.snapshot()?;
            let members = self.slots.members_of(tree.membership)?;
            let found = below(&snapshot, tree.roots, &members, tree.spared);
            let missing: Vec<_> = found
                .living
                .iter()
                .filter(|id| !members.contains(id))
                .collect();
            let is_last = round == ROUNDS || failed > 0;
            if missing.is_empty() || is_last {
                let unlabelled = Unlabelled {
                    unrecorded: snapshot.lost_records,
                    unsettled: found.open + if failed > 0 { 0 } else { missing.len() as u64 },
                    failed: if missing.is_empty() { 0 } else { failed },
                };
                return Ok(Labelled::Done(unlabelled, snapshot));
            }
            for id in missing {
                let is_live = || {
                    let record = self.record(id)?;
                    Ok(record.is_some_and(|record| record.state == LIVE))
                };
                match self.slots.add(id, tree.layer, tree.membership, is_live)? {
                    Added::Yes => {}
                    Added::Overlaps => return Ok(Labelled::Overlaps),
                    Added::Full => failed += 1,
                }
            }
        }
    }
}

/// What a reading shows of a tree.
struct Below {
    living: Vec<ProcessId>,
    /// Living processes that may belong to it: what they descend from was lost.
    open: u64,
}

/// Returns what descends from `roots` or from a member, without passing through who is spared.
fn below(
    snapshot: &Snapshot,
    roots: &[ProcessId],
    members: &HashSet<ProcessId>,
    spared: &HashSet<ProcessId>,
) -> Below {
    let forest = Forest::new(snapshot.records.iter().copied());
    let mut tops: Vec<_> = roots.iter().chain(members).copied().collect();
    tops.sort_unstable();
    tops.dedup();
    let tree = crate::forest::walk(&tops, |id| {
        if spared.contains(id) {
            &[]
        } else {
            forest.children(id)
        }
    });
    let inside: HashSet<_> = tree.into_iter().map(|(id, _)| id).collect();
    let living = inside.iter().filter(|id| forest.is_live(id));
    let mut living: Vec<_> = living.filter(|id| !spared.contains(id)).copied().collect();
    living.sort_unstable();
    // Whoever descends from a root has started after it.
    let oldest = roots.iter().map(|root| root.start_ns).min().unwrap_or(0);
    let lost = snapshot.lost_tops().filter(|id| id.start_ns >= oldest);
    let lost = lost.filter(|id| !inside.contains(id));
    let open = lost.map(|id| forest.living(id).len() as u64).sum();
    Below { living, open }
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

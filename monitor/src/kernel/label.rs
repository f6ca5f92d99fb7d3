//! The start of a watch: takes a slot, and labels the members of the tree.
//!
//! The order of [`Tracker::watch`] is what makes the snapshot equal to an atomic one (I5): the slot
//! and its ring are there before the first label pass, so whatever a member does from the moment
//! when it is labelled is in the ring; and the passes go on until one of them inserts nothing and
//! meets no task whose fork hook is still under way.
//!
//! In the kernel:
//! - An update of an array of maps returns after every running program has ended:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n145>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n157>

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use lifemon_ebpf::{LIVE, Membership, PASS_LABEL, Pass, ProcessId, limits};

use super::Error;
use super::lock::Patience;
use super::tracker::Tracker;
use super::watcher::{Unlabelled, WatchOptions, Watcher};
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
        self.slots.reclaim()?;
        let owner = self.own_id()?;
        let slot = self.slots.free().ok_or(Error::NoSlot)?;
        let ring = create_ring(options.ring_bytes)?;
        let mut taken = Err(Error::NoLayer);
        for layer in 0..limits::LAYERS {
            self.slots.keep_root(root)?;
            let generation = self.slots.take(slot, layer, root, owner);
            // Slot and ring first: whatever a member does once it is labelled is in the ring (I5).
            self.slots.set_ring(slot, ring.as_fd())?;
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
                Ok(None) => self.slots.give_back(slot)?,
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
                self.slots.give_back(slot)?;
                Err(error)
            }
        }
    }

    fn adopt(
        &self,
        processes: &[ProcessId],
        layer: u32,
        membership: Membership,
    ) -> Result<bool, Error> {
        self.slots.adopt(processes, layer, membership, |process| {
            let record = self.record(process)?;
            Ok(record.is_some_and(|record| record.state == LIVE))
        })
    }

    /// Returns the identity of this process: from its record, or as exact as `/proc` has it.
    fn own_id(&self) -> Result<ProcessId, Error> {
        let pid = std::process::id();
        match self.snapshot()?.live(pid) {
            Some((id, _)) => Ok(*id),
            None => proc::identify(pid).ok_or_else(|| Error::NoProcess(pid.to_string())),
        }
    }

    /// Labels the living members of the tree; returns nothing when another tree of the layer
    /// overlaps.
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
            self.pass.at(0).ask(&Pass {
                kind: PASS_LABEL,
                slot,
                generation,
                layer,
                root,
                ..Pass::default()
            });
            self.label()?;
            // The pass has ended: the iterator was read to its end.
            let found = self.pass.at(0);
            if found.conflicts.load(Ordering::SeqCst) > 0 {
                return Ok(None);
            }
            left = Unlabelled {
                unrecorded: found.unrecorded.load(Ordering::SeqCst),
                unsettled: found.unsettled.load(Ordering::SeqCst),
                failed: found.failed.load(Ordering::SeqCst),
            };
            if found.inserted.load(Ordering::SeqCst) > 0 {
                busy += 1;
                idle_since = None;
                continue;
            }
            // What has no record because the lineage map was full will not get one.
            let is_final = self.host_counters().lost_records > 0;
            let since = *idle_since.get_or_insert_with(Instant::now);
            let is_settled = left.is_complete() || left.failed > 0;
            if is_settled || is_final || since.elapsed() >= SETTLE_TIME {
                break;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(SETTLE_PAUSES[1]);
        }
        Ok(Some(left))
    }
}

/// Creates the ring of one watcher.
fn create_ring(bytes: u32) -> Result<RingBuf<MapData>, Error> {
    let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let ring = MapData::create(ring, "lifemon_ring", None);
    let ring = ring.map_err(|error| Error::load("a ring buffer", &error))?;
    RingBuf::try_from(Map::RingBuf(ring)).map_err(|error| Error::load("a ring buffer", &error))
}

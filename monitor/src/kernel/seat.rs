//! How a watched tree takes a slot, in steps that may each be the last: a command that is killed
//! leaves a slot that belongs to nobody, and the next command reclaims it. Under the lock.
//!
//! Slot and ring come before the first label: whatever a member does from the moment when it is
//! labelled is in the ring (I5).

use std::collections::HashSet;

use lifemon_ebpf::{Membership, ProcessId};

use super::Error;
use super::label::{Labelled, Tree, Unlabelled, below, label};
use super::maps::Maps;
use super::scene::Scene;
use super::slots::Rank;
use super::snapshot::Snapshot;

/// A slot that was taken, with every member labelled.
pub(super) struct Seat {
    pub(super) membership: Membership,
    pub(super) layer: u32,
    pub(super) unlabelled: Unlabelled,
    /// The records as the last reading of labelling showed them.
    pub(super) snapshot: Snapshot,
}

/// Takes a slot for the tree of the first of `roots` and, with it, those of the others. `owner`
/// finds who takes it.
///
/// # Errors
/// [`Error::NoProcess`] when the root has no record, [`Error::NoSlot`], [`Error::NoLayer`].
pub(super) fn take<S: Scene>(
    scene: &mut S,
    rank: Rank,
    roots: &[ProcessId],
    owner: impl FnOnce(&Snapshot) -> Result<ProcessId, Error>,
    ring: <S::Maps as Maps>::Ring<'_>,
) -> Result<Seat, Error> {
    let root = roots[0];
    reclaim(scene)?;
    let first = scene.snapshot()?;
    let owner = owner(&first)?;
    let slot = scene.slots().free(rank).ok_or(Error::NoSlot)?;
    let spared = HashSet::new();
    let taken = below(&first, roots, &HashSet::new(), &spared);
    for layer in scene.slots().layers(rank, &taken.living)? {
        scene.slots().keep_root(root)?;
        let generation = scene.slots().take(slot, layer, root, owner);
        let membership = Membership { slot, generation };
        let set = scene.slots().set_ring(slot, ring);
        let labelled = set.and_then(|()| {
            scene.tidy()?;
            if scene.record(&root)?.is_none() {
                return Err(Error::NoProcess(root.pid.to_string()));
            }
            let tree = Tree {
                membership,
                layer,
                roots,
                spared: &spared,
            };
            label(scene, &tree)
        });
        match labelled {
            Ok(Labelled::Done(unlabelled, snapshot)) => {
                return Ok(Seat {
                    membership,
                    layer,
                    unlabelled,
                    snapshot,
                });
            }
            // Another tree of this layer overlaps: its members stay, ours go.
            Ok(Labelled::Overlaps) => scene.slots().give_back(slot)?,
            Err(error) => {
                scene.slots().give_back(slot)?;
                return Err(error);
            }
        }
    }
    Err(Error::NoLayer)
}

/// Gives back the slots of watchers that were killed; returns how many there were.
///
/// # Errors
/// When the maps cannot be accessed.
pub(super) fn reclaim<S: Scene>(scene: &S) -> Result<usize, Error> {
    scene.slots().reclaim(|owner| scene.is_watching(&owner))
}

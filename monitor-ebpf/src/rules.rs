//! The rules of the lineage as pure functions over a store of records: when a record goes, and which
//! ghosts stay. The kernel half runs them on its maps, the tests on a
//! model, so what is tested is what runs.
//!
//! Two facts carry all of it. A process that is dead never gains a reference, because only the
//! living create processes. And an identity never comes back, so **the delete that succeeds owns
//! what follows from it**: the drop of the reference on the creator happens exactly once.

use crate::{DEAD, HELD, ProcessId, limits};

/// The part of a record that the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its creator.
    pub creator: ProcessId,
    /// Itself while alive, plus the records that hold it.
    pub references: u64,
    /// [`LIVE`](crate::LIVE) or [`DEAD`].
    pub state: u64,
    /// [`HELD`], [`NOT_HELD`](crate::NOT_HELD), due where learning did not come to the creator, or
    /// lost.
    pub holds_creator: u64,
    /// Ghosts spliced out between it and its creator.
    pub elided: u64,
    /// Not 0 if one of those died badly.
    pub elided_badly: u64,
    /// Not 0 if it has died badly itself: [`crate::died_badly`].
    pub died_badly: u64,
}

/// The store of the records.
pub trait Lineage {
    /// Returns a consistent copy of the link of `id`, or nothing when there is no such record (any
    /// more).
    fn link(&self, id: &ProcessId) -> Option<Link>;
    /// Lets `id`, which the caller owns (it is the process that is dying), skip a ghost: takes
    /// creator, hold and what was elided from `link`.
    fn relink(&self, id: &ProcessId, link: &Link);
    /// Drops one reference that the caller holds on `id`; what is left, or nothing when there is
    /// no such record.
    fn unreference(&self, id: &ProcessId) -> Option<u64>;
    /// Removes `id`; whether this call is the one that did.
    fn remove(&self, id: &ProcessId) -> bool;
    /// Returns whether `id` must stay because it is the root of a watched tree.
    fn is_root(&self, id: &ProcessId) -> bool;
    /// Counts a release that had to stop at its limit.
    fn overrun(&self);
}

/// Buries `id`, whose record says that it has died: splices what is too long above it,
/// drops its own reference, and removes every record that nobody needs any more.
///
/// The splice comes first: while `id` still holds its own reference, no child that dies at the
/// same moment can remove it.
#[inline(always)]
pub fn bury<L: Lineage>(lineage: &L, id: &ProcessId) {
    splice(lineage, id);
    release(lineage, id);
}

/// Splices ghosts out of the chain above `id`, which is dying, until at most
/// [`limits::GHOSTS_IN_A_ROW`] are left that only `id` needs. The oldest stay: they say where the
/// chain left the tree.
///
/// A ghost with a single reference is held by the record below it alone. That record is `id` or
/// a ghost that is held by `id` alone in turn; so while `id` keeps its own reference nobody else
/// can drop, remove or relink any of them.
#[inline(always)]
pub fn splice<L: Lineage>(lineage: &L, id: &ProcessId) {
    let Some(mut below) = lineage.link(id) else {
        return;
    };
    // Without children it is about to be removed, and the chain with it.
    if below.references <= 1 {
        return;
    }
    let mut row = 0;
    let mut at = below;
    for _ in 0..limits::GHOSTS_IN_A_ROW + limits::SPLICES {
        let Some(above) = ghost_held_by(lineage, &at) else {
            break;
        };
        row += 1;
        at = above;
    }
    for _ in 0..limits::SPLICES {
        if row <= limits::GHOSTS_IN_A_ROW || lineage.is_root(&below.creator) {
            return;
        }
        let Some(ghost) = ghost_held_by(lineage, &below) else {
            return;
        };
        let gone = below.creator;
        below.elided = below.elided.saturating_add(ghost.elided).saturating_add(1);
        below.elided_badly |= ghost.elided_badly | ghost.died_badly;
        below.creator = ghost.creator;
        below.holds_creator = ghost.holds_creator;
        // The ghost's reference on its creator passes to `id`: no count changes. Whoever reads
        // between the two finds no creator, and reads again.
        if !lineage.remove(&gone) {
            return;
        }
        lineage.relink(id, &below);
        row -= 1;
    }
}

/// Returns the creator of the record with link `below`, if that is a ghost that only this record
/// holds.
#[inline(always)]
fn ghost_held_by<L: Lineage>(lineage: &L, below: &Link) -> Option<Link> {
    if below.holds_creator != HELD {
        return None;
    }
    let above = lineage.link(&below.creator)?;
    (above.state == DEAD && above.references == 1).then_some(above)
}

/// Drops one reference on `id`, and while that was the last one removes the record and goes on
/// with its creator.
#[inline(always)]
pub fn release<L: Lineage>(lineage: &L, id: &ProcessId) {
    let mut at = *id;
    for _ in 0..limits::RELEASE_STEPS {
        match lineage.unreference(&at) {
            Some(0) => {}
            _ => return,
        }
        match take_out(lineage, &at) {
            Some(creator) => at = creator,
            None => return,
        }
    }
    // The last removed one still counts here: without this drop no sweep would find what is left.
    if lineage.unreference(&at) == Some(0) {
        lineage.overrun();
    }
}

/// Removes a record that is dead and without references, and releases its creator: for what was
/// left over, by the end of learning or by a release that had to stop at its limit. Harmless for
/// any other record, and when somebody else removes it at the same time.
#[inline(always)]
pub fn sweep<L: Lineage>(lineage: &L, id: &ProcessId) {
    match lineage.link(id) {
        Some(link) if link.state == DEAD && link.references == 0 => {}
        _ => return,
    }
    if let Some(creator) = take_out(lineage, id) {
        release(lineage, &creator);
    }
}

/// Removes the record `id`; its creator if this call did remove it and it held its creator.
#[inline(always)]
fn take_out<L: Lineage>(lineage: &L, id: &ProcessId) -> Option<ProcessId> {
    // Read before the delete: the delete that succeeds proves that it was there to be read.
    let link = lineage.link(id)?;
    (lineage.remove(id) && link.holds_creator == HELD).then_some(link.creator)
}

//! The rules of the lineage as pure functions over a store of records: when a record goes, which
//! ghosts stay, who descends from whom. The kernel half runs them on its maps, the tests on a
//! model, so what is tested is what runs.
//!
//! Three facts carry all of it. A process that is dead never gains a reference, because only the
//! living create processes. And an identity never comes back, so **the delete that succeeds owns
//! what follows from it**: the drop of the reference on the creator happens exactly once. And a
//! link is changed, a record removed, only by who has claimed it: the claim that succeeds comes
//! before the reading of the link that is acted upon. Nobody waits for a claim. Who does not get
//! one leaves the record to who has it, and that one looks once more when it is done; should nobody
//! do so, the sweep finds the record.

use core::hint::black_box;

use crate::{BUSY, DEAD, HELD, Holders, NOT_HELD, ProcessId, TAKEN, limits};

/// The part of a record that the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its creator.
    pub creator: ProcessId,
    /// Itself while alive, plus the records that hold it.
    pub references: u64,
    /// The sum of those records: where one is left, which.
    pub holders: Holders,
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
    /// Claims `id` if nobody has: [`BUSY`] to change its link, [`TAKEN`] to remove it. Whether this
    /// call did.
    fn claim(&self, id: &ProcessId, claim: u64) -> bool;
    /// Gives a claim back.
    fn give_back(&self, id: &ProcessId);
    /// Lets `id`, which the caller has claimed, skip a ghost: takes creator, hold and what was
    /// elided from `link`.
    fn relink(&self, id: &ProcessId, link: &Link);
    /// Drops the reference of `by` on `id`, its own if they are the same; what is left, or nothing
    /// when there is no such record.
    fn unreference(&self, id: &ProcessId, by: &ProcessId) -> Option<u64>;
    /// Makes the reference that `from` had on `id` that of `to`.
    fn pass_on(&self, id: &ProcessId, from: &ProcessId, to: &ProcessId);
    /// Removes `id`; whether this call is the one that did.
    fn remove(&self, id: &ProcessId) -> bool;
    /// Returns whether `id` must stay because it is the root of a watched tree.
    fn is_root(&self, id: &ProcessId) -> bool;
    /// Counts a release that had to stop at its limit.
    fn overrun(&self);
}

/// Buries `id`, whose record says that it has died: drops its own reference, removes every record
/// that nobody needs any more, and splices where a row of ghosts has become too long.
///
/// A row grows in two ways: whoever one record holds dies, or of the records that hold a ghost one
/// is left. Both are seen here, wherever in its row the ghost stands: so there are no more ghosts
/// than rows between the living are long, whatever users do.
#[inline(always)]
pub fn bury<L: Lineage>(lineage: &L, id: &ProcessId) {
    let mut at = *id;
    let mut left = references_left(lineage.unreference(id, id));
    if left == 0 {
        left = remove_from(lineage, &mut at);
    }
    if left == 1
        && let Some(bottom) = below_row(lineage, &at)
    {
        compact(lineage, &bottom);
    }
}

/// Returns the record below the row of ghosts that `id` stands in, or one in the row if that is
/// long; nothing where it is no ghost, or another has just changed the row.
#[inline(always)]
fn below_row<L: Lineage>(lineage: &L, id: &ProcessId) -> Option<ProcessId> {
    let mut at = *id;
    let mut link = lineage.link(&at)?;
    if link.state != DEAD {
        return None;
    }
    for _ in 0..=limits::GHOSTS_IN_A_ROW {
        if link.state != DEAD || link.references != 1 {
            break;
        }
        let below = link.holders.only();
        let held_by = lineage.link(&below)?;
        if held_by.holds_creator != HELD || held_by.creator != at {
            return None;
        }
        at = below;
        link = held_by;
    }
    Some(at)
}

/// Splices the row of ghosts above any record, alive or dead. Whoever drops the last reference on
/// it meanwhile cannot remove it, and leaves that to this.
#[inline(always)]
pub fn compact<L: Lineage>(lineage: &L, id: &ProcessId) {
    if lineage.claim(id, BUSY) {
        splice(lineage, id);
        lineage.give_back(id);
        sweep(lineage, id);
    }
}

/// Splices ghosts out of the chain above `id`, which the caller has claimed, until at most
/// [`limits::GHOSTS_IN_A_ROW`] are left that only `id` needs. The oldest stay: they say where the
/// chain left the tree.
///
/// A ghost with a single reference is held by the record below it alone. That record is `id` or
/// a ghost that is held by `id` alone in turn; so while `id` stays nobody else can drop or remove
/// any of them. Who relinks one has claimed it.
#[inline(always)]
fn splice<L: Lineage>(lineage: &L, id: &ProcessId) {
    let Some(mut below) = lineage.link(id) else {
        return;
    };
    let mut row = 0_u64;
    let mut at = below;
    for _ in 0..limits::GHOSTS_IN_A_ROW + limits::SPLICES {
        let Some(above) = ghost_held_by(lineage, &at) else {
            break;
        };
        row += 1;
        at = above;
    }
    let mut row = forgotten(row, below.creator.start_ns);
    for _ in 0..limits::SPLICES {
        if row <= u64::from(limits::GHOSTS_IN_A_ROW) || lineage.is_root(&below.creator) {
            return;
        }
        let gone = below.creator;
        if !lineage.claim(&gone, TAKEN) {
            return;
        }
        let Some(ghost) = ghost_held_by(lineage, &below) else {
            lineage.give_back(&gone);
            return;
        };
        below.elided = below.elided.saturating_add(ghost.elided).saturating_add(1);
        below.elided_badly |= ghost.elided_badly | ghost.died_badly;
        below.creator = ghost.creator;
        below.holds_creator = ghost.holds_creator;
        // The ghost's reference on its creator passes to `id`: no count changes. Whoever reads
        // between the two finds no creator, and reads again.
        if !lineage.remove(&gone) {
            lineage.give_back(&gone);
            return;
        }
        lineage.relink(id, &below);
        if below.holds_creator == HELD {
            lineage.pass_on(&below.creator, &gone, id);
        }
        row -= 1;
    }
}

/// Returns `number` so that the verifier no longer knows it, and does not walk through what follows
/// once for each value. `noise` is anything that was read from a map.
#[inline(always)]
fn forgotten(number: u64, noise: u64) -> u64 {
    black_box(number ^ noise) ^ noise
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

/// What is left of a record that is gone, or that somebody else deals with.
const NOTHING_LEFT: u64 = u64::MAX;

/// Returns a number also where there is no such record: of an absent one the compiler copies a
/// register that nobody has written, which the verifier refuses.
#[inline(always)]
fn references_left(left: Option<u64>) -> u64 {
    left.unwrap_or(NOTHING_LEFT)
}

/// Removes the record `at`, which is dead and without references, drops its reference on its
/// creator, and while that was the last one goes on with that. Returns how many references the
/// first has that stays, which `at` is then, or [`NOTHING_LEFT`].
#[inline(always)]
fn remove_from<L: Lineage>(lineage: &L, at: &mut ProcessId) -> u64 {
    for _ in 0..limits::RELEASE_STEPS {
        match take_out(lineage, at) {
            Taken::Out(Some(creator)) => {
                let left = references_left(lineage.unreference(&creator, at));
                *at = creator;
                if left != 0 {
                    return left;
                }
            }
            Taken::Out(None) => return NOTHING_LEFT,
            Taken::Left => {
                lineage.overrun();
                return NOTHING_LEFT;
            }
        }
    }
    // The last one has no references any more: the sweep finds it.
    lineage.overrun();
    NOTHING_LEFT
}

/// Removes a record that is dead and without references, and whatever nobody needs then: for what
/// was left over, by the end of learning or by a removal that had to stop at its limit. Harmless
/// for any other record, and when somebody else removes it at the same time.
#[inline(always)]
pub fn sweep<L: Lineage>(lineage: &L, id: &ProcessId) {
    let link = lineage.link(id);
    if link.is_some_and(|link| link.state == DEAD && link.references == 0) {
        let mut at = *id;
        remove_from(lineage, &mut at);
    }
}

/// The result of taking a record out.
enum Taken {
    /// It is out, or was out before; with its creator, if this call removed it and it held one.
    Out(Option<ProcessId>),
    /// Somebody else has claimed it, or the kernel has refused.
    Left,
}

/// Removes the record `id`, which has no references.
#[inline(always)]
fn take_out<L: Lineage>(lineage: &L, id: &ProcessId) -> Taken {
    if !lineage.claim(id, TAKEN) {
        return Taken::Left;
    }
    // Read after the claim and before the delete: so it is the last that the link was, and the
    // delete that succeeds proves that it was there to be read.
    let Some(link) = lineage.link(id) else {
        return Taken::Out(None);
    };
    if !lineage.remove(id) {
        lineage.give_back(id);
        return Taken::Left;
    }
    Taken::Out((link.holds_creator == HELD).then_some(link.creator))
}

/// The result of climbing from a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// It descends from the root.
    Inside,
    /// It does not.
    Outside,
    /// A record on the way was removed meanwhile or never learnt, or the way is longer than
    /// [`limits::CLIMB_STEPS`]: look again in the next pass.
    Unsettled,
    /// The process itself has no record: its fork hook is still under way, or the map was full.
    Unrecorded,
}

/// One step of a climb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The process belongs.
    Inside,
    /// It has no record.
    Unrecorded,
    /// On to its creator, which it holds or not: [`Link::holds_creator`].
    Up(u64),
}

/// Looks at `at` and goes on to its creator.
#[inline(always)]
pub fn step<L: Lineage>(
    lineage: &L,
    at: &mut ProcessId,
    is_inside: impl Fn(&ProcessId) -> bool,
) -> Step {
    if is_inside(at) {
        return Step::Inside;
    }
    let Some(link) = lineage.link(at) else {
        return Step::Unrecorded;
    };
    *at = link.creator;
    Step::Up(link.holds_creator)
}

/// Climbs from `id` over its creators, through ghosts, until one of them belongs. `step` is
/// [`step`].
///
/// While the process lives it holds its creator, that one holds its own, and so on up: none can
/// vanish. So an answer is exact if the process is still alive *after* the climb, which the caller
/// checks. A splice above it can take one ghost out of the way: then a held creator is missing,
/// and the answer is [`Descent::Unsettled`].
#[inline(always)]
pub fn climb(id: &ProcessId, mut step: impl FnMut(&mut ProcessId) -> Step) -> Descent {
    let mut at = *id;
    let mut held = None;
    for _ in 0..limits::CLIMB_STEPS {
        match (step(&mut at), held) {
            (Step::Inside, _) => return Descent::Inside,
            (Step::Unrecorded, None) => return Descent::Unrecorded,
            (Step::Unrecorded, Some(NOT_HELD)) => return Descent::Outside,
            (Step::Unrecorded, Some(_)) => return Descent::Unsettled,
            (Step::Up(_), _) if at.is_none() => return Descent::Outside,
            (Step::Up(holds), _) => held = Some(holds),
        }
    }
    Descent::Unsettled
}

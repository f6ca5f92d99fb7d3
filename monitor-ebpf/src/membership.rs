//! Membership in watched trees: children inherit it, a death ends it, the counters follow. Over a
//! store whose calls are single steps, like [`crate::records`].
//!
//! Entries are inserted once and never changed, so everything here goes by key. Count first, then
//! insert; take the count back when the insert failed or found the entry there (I1). The delete
//! that succeeds owns the decrement (I2). A tree whose generation changed is gone: its entries
//! are stale and count for nothing.
//!
//! In the kernel:
//! - A deleted element is used again at once:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n1045>

use crate::{
    MemberKey, Membership, ProcessId, limits,
    records::{EEXIST, Records, deleted, tried},
    rules::{self, Descent, Step},
};

/// The membership map and the slots of watched trees. Every call is one step.
pub trait Trees: Records {
    /// A slot.
    type Tree: Copy;

    /// Returns the layers that some tree uses, as bits.
    fn layers(&self) -> u64;
    /// Returns a slot; slot 0 is the host.
    fn tree(&self, slot: u32) -> Option<Self::Tree>;
    /// Returns the generation of a slot.
    fn generation(&self, tree: Self::Tree) -> u32;
    /// Returns the condemnation of a slot: [`crate::Tree::condemned`].
    fn condemnation(&self, tree: Self::Tree) -> u64;
    /// Adds 1 to the living members of a slot.
    fn count_live(&self, tree: Self::Tree);
    /// Takes 1 from them.
    fn count_dead(&self, tree: Self::Tree);
    /// Counts a member that was created.
    fn count_fork(&self, tree: Self::Tree);
    /// Counts a member that has died.
    fn count_exit(&self, tree: Self::Tree);
    /// Counts a member that could not be inserted.
    fn count_lost_member(&self, tree: Self::Tree);

    /// A place in the membership map. It stays, but can hold another entry a moment later.
    type Entry: Copy + PartialEq;

    /// Returns where the membership `key` is now.
    fn find_member(&self, key: &MemberKey) -> Option<Self::Entry>;
    /// Copies the membership that is there, whoever's it is.
    fn copy_member(&self, at: Self::Entry) -> Membership;
    /// Inserts a membership unless there is one.
    ///
    /// # Errors
    /// [`EEXIST`], [`crate::records::E2BIG`], or one that passes.
    fn insert_member(&self, key: &MemberKey, membership: Membership) -> Result<(), i32>;
    /// Deletes a membership.
    ///
    /// # Errors
    /// [`crate::records::ENOENT`], or one that passes.
    fn delete_member(&self, key: &MemberKey) -> Result<(), i32>;
}

/// Returns the tree of a membership, unless that is stale.
#[inline(always)]
fn tree_of<T: Trees>(store: &T, membership: Membership) -> Option<T::Tree> {
    let tree = store.tree(membership.slot)?;
    (store.generation(tree) == membership.generation).then_some(tree)
}

/// Returns the membership of `process` in `layer`, copied; what is stale is none. Whether it is
/// still that entry is decided by the caller: a living member's is, a dying one's if the delete
/// succeeds.
#[inline(always)]
pub fn membership<T: Trees>(store: &T, process: &ProcessId, layer: u32) -> Option<Membership> {
    let at = store.find_member(&MemberKey::new(*process, layer))?;
    let value = store.copy_member(at);
    tree_of(store, value).map(|_| value)
}

/// The result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is a member now, by this call.
    Now,
    /// It was one already.
    Before,
    /// The map is full.
    Full,
}

/// Makes `process` a member.
#[inline(always)]
pub fn join<T: Trees>(
    store: &T,
    process: &ProcessId,
    layer: u32,
    membership: Membership,
) -> Joined {
    let Some(tree) = tree_of(store, membership) else {
        return Joined::Before;
    };
    // Counted before it is inserted: the counter never under-counts (I1).
    store.count_live(tree);
    let key = MemberKey::new(*process, layer);
    match tried(|| store.insert_member(&key, membership)) {
        Ok(()) => Joined::Now,
        Err(code) => {
            store.count_dead(tree);
            if code == EEXIST {
                return Joined::Before;
            }
            store.count_lost_member(tree);
            Joined::Full
        }
    }
}

/// Ends one membership.
#[inline(always)]
fn leave<T: Trees>(store: &T, process: &ProcessId, layer: u32, membership: Membership) {
    let key = MemberKey::new(*process, layer);
    // The delete that succeeds owns the decrement (I2).
    let left = deleted(store, || store.delete_member(&key));
    if let (true, Some(tree)) = (left, tree_of(store, membership)) {
        store.count_dead(tree);
    }
}

/// Returns the condemned tree of one of `layers` that `process` is a member of.
#[inline(always)]
pub fn condemned<T: Trees>(store: &T, process: &ProcessId, layers: u64) -> Option<T::Tree> {
    for layer in 0..limits::LAYERS {
        if layers >> layer & 1 == 0 {
            continue;
        }
        if let Some(membership) = membership(store, process, layer)
            && let Some(tree) = store.tree(membership.slot)
            && store.condemnation(tree) != 0
        {
            return Some(tree);
        }
    }
    None
}

/// Calls `each` for every layer in which `process` is a member.
#[inline(always)]
pub fn for_each<T: Trees>(
    store: &T,
    process: &ProcessId,
    mut each: impl FnMut(u32, Membership, T::Tree),
) {
    let layers = store.layers();
    if layers == 0 {
        return;
    }
    for layer in 0..limits::LAYERS {
        if layers >> layer & 1 == 0 {
            continue;
        }
        if let Some(membership) = membership(store, process, layer)
            && let Some(tree) = store.tree(membership.slot)
        {
            each(layer, membership, tree);
        }
    }
}

/// Handles a fork of a member: the new process is a member of the same trees. One whose death
/// would not be seen is counted as lost instead: it would keep the tree alive for ever. `report`
/// tells the watcher of a slot.
#[inline(always)]
pub fn inherit<T: Trees>(
    store: &T,
    creator: &ProcessId,
    process: &ProcessId,
    is_followed: bool,
    mut report: impl FnMut(u32, T::Tree),
) {
    for_each(store, creator, |layer, membership, tree| {
        if !is_followed {
            store.count_lost_member(tree);
            return;
        }
        // It may have been labelled before; the event is this hook's all the same.
        join(store, process, layer, membership);
        store.count_fork(tree);
        report(membership.slot, tree);
    });
}

/// Reports the death of a member, then counts it down. In this order, because who sees the
/// counter at 0 must find every death in the ring.
#[inline(always)]
pub fn leave_all<T: Trees>(store: &T, process: &ProcessId, mut report: impl FnMut(u32, T::Tree)) {
    for_each(store, process, |layer, membership, tree| {
        let key = MemberKey::new(*process, layer);
        // The delete that succeeds owns the decrement (I2).
        if !deleted(store, || store.delete_member(&key)) {
            return;
        }
        report(membership.slot, tree);
        store.count_exit(tree);
        store.count_dead(tree);
    });
}

/// Counts down a dead member whose exit hook was skipped. The watchers learn of it
/// by comparison with the map.
#[inline(always)]
pub fn leave_unseen<T: Trees>(store: &T, process: &ProcessId) {
    leave_all(store, process, |_, _| {});
}

/// The tree that a label pass labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its root.
    pub root: ProcessId,
    /// Its layer.
    pub layer: u32,
    /// The membership in it.
    pub membership: Membership,
}

/// The result of a visit of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visited {
    /// Nothing to do: it does not belong, is a member, or has died.
    Settled,
    /// It is a member now.
    Inserted,
    /// Its lineage changed meanwhile, or is lost: look again.
    Unsettled,
    /// It has no record.
    Unrecorded,
    /// Another tree of the layer has it.
    Conflict,
    /// The map is full.
    Full,
}

/// Makes `process` a member of the wanted tree if it descends from its root. `is_alive` asks the
/// kernel whether it can still run; `look` is [`look`].
#[inline(always)]
pub fn label<T: Trees>(
    store: &T,
    process: &ProcessId,
    wanted: &Wanted,
    is_alive: impl Fn() -> bool,
    look: impl FnMut(&mut ProcessId) -> Step,
) -> Visited {
    if !is_alive() {
        return Visited::Settled;
    }
    match rules::climb(process, look) {
        Descent::Inside => add(store, process, wanted, is_alive),
        Descent::Outside => Visited::Settled,
        Descent::Unsettled => Visited::Unsettled,
        Descent::Unrecorded => Visited::Unrecorded,
    }
}

/// Makes one step of the climb from `at`.
#[inline(always)]
pub fn look<T: Trees>(store: &T, at: &mut ProcessId, wanted: &Wanted) -> Step {
    rules::step(store, at, |id| {
        *id == wanted.root || is_member(store, id, wanted)
    })
}

/// Returns whether `process` is a member by exactly this membership. An ancestor may die now and
/// its entry be recycled: what was read counts only if the same element is still there under its
/// key.
#[inline(always)]
fn is_member<T: Trees>(store: &T, process: &ProcessId, wanted: &Wanted) -> bool {
    let key = MemberKey::new(*process, wanted.layer);
    let Some(at) = store.find_member(&key) else {
        return false;
    };
    store.copy_member(at) == wanted.membership && store.find_member(&key) == Some(at)
}

/// Makes a process a member, and takes that back if it has died meanwhile: its exit hook may have
/// looked before the insert. Both delete by key, so one of them counts it down.
#[inline(always)]
fn add<T: Trees>(
    store: &T,
    process: &ProcessId,
    wanted: &Wanted,
    is_alive: impl Fn() -> bool,
) -> Visited {
    let layer = wanted.layer;
    match join(store, process, layer, wanted.membership) {
        Joined::Now if is_alive() => Visited::Inserted,
        Joined::Now => {
            leave(store, process, layer, wanted.membership);
            Visited::Settled
        }
        Joined::Before => match membership(store, process, layer) {
            Some(found) if found != wanted.membership => Visited::Conflict,
            // A stale entry in its place, or it has just died.
            None if is_alive() => Visited::Unsettled,
            Some(_) | None => Visited::Settled,
        },
        Joined::Full => Visited::Full,
    }
}

//! Membership in watched trees: children inherit it, a death ends it, the counters follow.
//!
//! Entries are inserted once and never changed, so everything here goes by key. Count first, then
//! insert; take the count back when the insert failed or found the entry there (I1). The delete
//! that succeeds owns the decrement (I2). A tree whose generation changed is gone: its entries
//! are stale and count for nothing.
//!
//! In the kernel:
//! - A deleted element is used again at once:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n1045>

use aya_ebpf::bindings::BPF_NOEXIST;
use lifemon_ebpf::{Event, MemberKey, Membership, ProcessId, limits};

use crate::{
    events,
    lineage::{EEXIST, deleted, tried},
    maps::{MEMBERS, TreeView, host, tree},
};

/// Returns the tree of a membership, unless that is stale.
#[inline(always)]
fn tree_of(membership: Membership) -> Option<&'static TreeView> {
    let tree = tree(membership.slot)?;
    (tree.generation.read() == membership.generation).then_some(tree)
}

/// Returns the membership of `process` in `layer`, copied; what is stale is none.
#[inline(always)]
pub(crate) fn membership(process: &ProcessId, layer: u32) -> Option<Membership> {
    let key = MemberKey::new(*process, layer);
    let value = MEMBERS.get_ptr(key)?;
    // SAFETY: a map value stays mapped while a program runs; whether it still is this entry is
    // decided by the caller (a living member's is; a dying one's if the delete succeeds).
    let value = unsafe { value.read_volatile() };
    tree_of(value).map(|_| value)
}

/// Layers that some tree uses, as bits.
#[inline(always)]
fn layers() -> u64 {
    host().map_or(0, |host| host.layers.read())
}

/// The result of an insertion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is a member now, by this call.
    Now,
    /// It was one already.
    Before,
    /// The map is full.
    Full,
}

/// Makes `process` a member.
#[inline(always)]
pub(crate) fn join(process: &ProcessId, layer: u32, membership: Membership) -> Joined {
    let Some(tree) = tree_of(membership) else {
        return Joined::Before;
    };
    // Counted before it is inserted: the counter never under-counts (I1).
    tree.live.increment();
    let key = MemberKey::new(*process, layer);
    match tried(|| MEMBERS.insert(key, membership, u64::from(BPF_NOEXIST))) {
        Ok(()) => Joined::Now,
        Err(code) => {
            tree.live.decrement();
            if code == EEXIST {
                return Joined::Before;
            }
            tree.lost_members.increment();
            Joined::Full
        }
    }
}

/// Ends one membership.
#[inline(always)]
pub(crate) fn leave(process: &ProcessId, layer: u32, membership: Membership) {
    // The delete that succeeds owns the decrement (I2).
    let left = deleted(|| MEMBERS.remove(MemberKey::new(*process, layer)));
    if let (true, Some(tree)) = (left, tree_of(membership)) {
        tree.live.decrement();
    }
}

/// Returns the condemned tree of one of `layers` that `process` is a member of.
#[inline(always)]
pub(crate) fn condemned(process: &ProcessId, layers: u64) -> Option<&'static TreeView> {
    for layer in 0..limits::LAYERS {
        if layers >> layer & 1 == 0 {
            continue;
        }
        if let Some(membership) = membership(process, layer)
            && let Some(tree) = tree(membership.slot)
            && tree.condemned.read() != 0
        {
            return Some(tree);
        }
    }
    None
}

/// Calls `each` for every layer in which `process` is a member.
#[inline(always)]
fn for_each(process: &ProcessId, mut each: impl FnMut(u32, Membership, &TreeView)) {
    let layers = layers();
    if layers == 0 {
        return;
    }
    for layer in 0..limits::LAYERS {
        if layers >> layer & 1 == 0 {
            continue;
        }
        if let Some(membership) = membership(process, layer)
            && let Some(tree) = tree(membership.slot)
        {
            each(layer, membership, tree);
        }
    }
}

/// Handles a fork of a member: the new process is a member of the same trees. One whose death
/// would not be seen is counted as lost instead: it would keep the tree alive for ever.
#[inline(never)]
pub(crate) fn inherit(
    creator: &ProcessId,
    process: &ProcessId,
    event: &mut Event,
    is_followed: bool,
) {
    for_each(creator, |layer, membership, tree| {
        if !is_followed {
            tree.lost_members.increment();
            return;
        }
        // It may have been labelled before; the event is this hook's all the same.
        join(process, layer, membership);
        tree.forks.increment();
        events::emit(membership.slot, tree, event, false);
    });
}

/// Reports the death of a member, then counts it down. In this order, because who sees the
/// counter at 0 must find every death in the ring.
#[inline(never)]
pub(crate) fn leave_all(process: &ProcessId, event: &mut Event) {
    for_each(process, |layer, membership, tree| {
        let key = MemberKey::new(*process, layer);
        // The delete that succeeds owns the decrement (I2).
        if !deleted(|| MEMBERS.remove(key)) {
            return;
        }
        events::emit(membership.slot, tree, event, true);
        tree.exits.increment();
        tree.live.decrement();
    });
}

/// Counts down a dead member whose exit hook was skipped. The watchers learn of it
/// by comparison with the map.
#[inline(never)]
pub(crate) fn leave_unseen(process: &ProcessId) {
    for_each(process, |layer, _, tree| {
        // The delete that succeeds owns the decrement (I2).
        if deleted(|| MEMBERS.remove(MemberKey::new(*process, layer))) {
            tree.exits.increment();
            tree.live.decrement();
        }
    });
}

/// Reports `event` to every tree of `process`.
#[inline(never)]
pub(crate) fn report(process: &ProcessId, event: &mut Event, urgent: bool, is_exec: bool) {
    for_each(process, |_, membership, tree| {
        if is_exec {
            tree.execs.increment();
        }
        events::emit(membership.slot, tree, event, urgent);
    });
}

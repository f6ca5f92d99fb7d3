//! Membership in watched trees: children inherit it, a death ends it, the counters follow.
//!
//! Entries are inserted once and never changed, so everything here goes by key. Count first, then
//! insert; take the count back when the insert failed or found the entry there (I1). The delete
//! that succeeds owns the decrement (I2). A tree whose generation changed is gone: its entries
//! are stale and count for nothing.

use aya_ebpf::bindings::BPF_NOEXIST;
use lifemon_ebpf::{Event, MemberKey, Membership, ProcessId, Tree, limits};

use crate::{
    atomic, events,
    maps::{MEMBERS, host, tree},
};

/// What an insertion came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is a member now, by this call.
    Now,
    /// It was one already.
    Before,
    /// The map is full.
    Full,
}

/// The tree of a membership, unless that is stale.
#[inline(always)]
fn tree_of(membership: Membership) -> Option<*mut Tree> {
    let tree = tree(membership.slot)?;
    // SAFETY: an array element is always there; userspace changes the word.
    let generation = unsafe { (&raw const (*tree).generation).read_volatile() };
    (generation == membership.generation).then_some(tree)
}

/// The membership of `process` in `layer`, copied; what is stale is none.
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
    // SAFETY: an array element is always there; userspace writes the word, so it is read once.
    host().map_or(0, |host| unsafe {
        (&raw const (*host).layers).read_volatile()
    })
}

/// Makes `process` a member.
#[inline(always)]
pub(crate) fn join(process: &ProcessId, layer: u32, membership: Membership) -> Joined {
    let Some(tree) = tree_of(membership) else {
        return Joined::Before;
    };
    // SAFETY: an array element is always there.
    unsafe { atomic::increment(&raw mut (*tree).live) };
    let key = MemberKey::new(*process, layer);
    match MEMBERS.insert(key, membership, u64::from(BPF_NOEXIST)) {
        Ok(()) => Joined::Now,
        Err(code) => {
            // SAFETY: as above.
            unsafe { atomic::decrement(&raw mut (*tree).live) };
            if code == -17 {
                return Joined::Before;
            }
            // SAFETY: as above.
            unsafe { atomic::increment(&raw mut (*tree).lost_members) };
            Joined::Full
        }
    }
}

/// Ends one membership; whether this call is the one that did.
#[inline(always)]
pub(crate) fn leave(process: &ProcessId, layer: u32, membership: Membership) -> bool {
    let left = MEMBERS.remove(MemberKey::new(*process, layer)).is_ok();
    if let (true, Some(tree)) = (left, tree_of(membership)) {
        // SAFETY: an array element is always there.
        unsafe { atomic::decrement(&raw mut (*tree).live) };
    }
    left
}

/// Whether `process` is a member of a condemned tree of one of `layers`.
#[inline(always)]
pub(crate) fn is_condemned(process: &ProcessId, layers: u64) -> bool {
    for layer in 0..limits::LAYERS {
        if layers >> layer & 1 == 0 {
            continue;
        }
        if let Some(membership) = membership(process, layer)
            && let Some(tree) = tree(membership.slot)
        {
            // SAFETY: an array element is always there; userspace writes the word.
            if unsafe { (&raw const (*tree).condemned).read_volatile() } != 0 {
                return true;
            }
        }
    }
    false
}

/// Calls `each` for every layer in which `process` is a member.
#[inline(always)]
fn for_each(process: &ProcessId, mut each: impl FnMut(u32, Membership, *mut Tree)) {
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

/// A member has created a process: that one is a member of the same trees. One whose death would
/// not be seen is counted as lost instead: it would keep the tree alive for ever.
#[inline(never)]
pub(crate) fn inherit(
    creator: &ProcessId,
    process: &ProcessId,
    event: &mut Event,
    is_followed: bool,
) {
    for_each(creator, |layer, membership, tree| {
        if !is_followed {
            // SAFETY: an array element is always there.
            unsafe { atomic::increment(&raw mut (*tree).lost_members) };
            return;
        }
        // The label pass may have been here before; the event is this hook's all the same.
        join(process, layer, membership);
        // SAFETY: an array element is always there.
        unsafe { atomic::increment(&raw mut (*tree).forks) };
        events::emit(membership.slot, tree, event, false);
    });
}

/// A member has died: reports it, then counts down. In this order, because who sees the counter
/// at 0 must find every death in the ring.
#[inline(never)]
pub(crate) fn leave_all(process: &ProcessId, event: &mut Event) {
    for_each(process, |layer, membership, tree| {
        let key = MemberKey::new(*process, layer);
        if MEMBERS.remove(key).is_err() {
            return;
        }
        events::emit(membership.slot, tree, event, true);
        // SAFETY: an array element is always there.
        unsafe {
            atomic::increment(&raw mut (*tree).exits);
            atomic::decrement(&raw mut (*tree).live);
        }
    });
}

/// A member is dead and its exit hook was skipped: counts it down. The watchers learn of it by
/// comparison with the map.
#[inline(never)]
pub(crate) fn leave_unseen(process: &ProcessId) {
    for_each(process, |layer, membership, tree| {
        if leave(process, layer, membership) {
            // SAFETY: an array element is always there.
            unsafe { atomic::increment(&raw mut (*tree).exits) };
        }
    });
}

/// Reports `event` to every tree of `process`.
#[inline(never)]
pub(crate) fn report(process: &ProcessId, event: &mut Event, urgent: bool, is_exec: bool) {
    for_each(process, |_, membership, tree| {
        if is_exec {
            // SAFETY: an array element is always there.
            unsafe { atomic::increment(&raw mut (*tree).execs) };
        }
        events::emit(membership.slot, tree, event, urgent);
    });
}

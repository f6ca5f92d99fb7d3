//! The membership map and the slots as the store of the rules, and what the hooks do with them:
//! [`lifemon_ebpf::membership`], [`lifemon_ebpf::lifecycle`].
//!
//! What a hook does at the end of a long way is a function of its own here: it has the stack to
//! itself (512 bytes for all that call each other).

use aya_ebpf::bindings::BPF_NOEXIST;
use lifemon_ebpf::{
    Event, MemberKey, Membership, ProcessId, Record,
    lifecycle::Lifecycle,
    membership::{self, Trees},
    records,
};

use crate::{
    events,
    lineage::Map,
    log,
    maps::{self, MEMBERS, TreeView, host},
};

/// A place in the membership map. It stays mapped while a program runs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Entry(*const Membership);

impl Trees for Map {
    type Tree = &'static TreeView;
    type Entry = Entry;

    #[inline(always)]
    fn layers(&self) -> u64 {
        host().map_or(0, |host| host.layers.read())
    }

    #[inline(always)]
    fn tree(&self, slot: u32) -> Option<&'static TreeView> {
        maps::tree(slot)
    }

    #[inline(always)]
    fn generation(&self, tree: &'static TreeView) -> u32 {
        tree.generation.read()
    }

    #[inline(always)]
    fn condemnation(&self, tree: &'static TreeView) -> u64 {
        tree.condemned.read()
    }

    #[inline(always)]
    fn count_live(&self, tree: &'static TreeView) {
        tree.live.increment();
    }

    #[inline(always)]
    fn count_dead(&self, tree: &'static TreeView) {
        tree.live.decrement();
    }

    #[inline(always)]
    fn count_fork(&self, tree: &'static TreeView) {
        tree.forks.increment();
    }

    #[inline(always)]
    fn count_exit(&self, tree: &'static TreeView) {
        tree.exits.increment();
    }

    #[inline(always)]
    fn count_lost_member(&self, tree: &'static TreeView) {
        tree.lost_members.increment();
    }

    #[inline(always)]
    fn find_member(&self, key: &MemberKey) -> Option<Entry> {
        MEMBERS.get_ptr(key).map(Entry)
    }

    #[inline(always)]
    fn copy_member(&self, Entry(entry): Entry) -> Membership {
        // SAFETY: a map value stays mapped while a program runs; whose it is the rules see to.
        unsafe { entry.read_volatile() }
    }

    #[inline(always)]
    fn insert_member(&self, key: &MemberKey, membership: Membership) -> Result<(), i32> {
        MEMBERS.insert(key, membership, u64::from(BPF_NOEXIST))
    }

    #[inline(always)]
    fn delete_member(&self, key: &MemberKey) -> Result<(), i32> {
        MEMBERS.remove(key)
    }
}

impl Lifecycle for Map {
    type Event = Event;

    #[inline(always)]
    fn emit(&self, slot: u32, tree: &'static TreeView, event: &mut Event, urgent: bool) {
        events::emit(slot, tree, event, urgent);
    }

    #[inline(always)]
    fn log(&self, process: &ProcessId, event: &mut Event) {
        log::record(process, event);
    }

    #[inline(always)]
    fn insert_child(&self, creator: &ProcessId, process: &ProcessId, record: &mut Record) -> bool {
        insert_child(creator, process, record)
    }

    #[inline(always)]
    fn inherit(
        &self,
        creator: &ProcessId,
        process: &ProcessId,
        event: &mut Event,
        is_followed: bool,
    ) {
        inherit(creator, process, event, is_followed);
    }

    #[inline(always)]
    fn leave_all(&self, process: &ProcessId, event: &mut Event) {
        leave_all(process, event);
    }

    #[inline(always)]
    fn leave_unseen(&self, process: &ProcessId) {
        leave_unseen(process);
    }

    #[inline(always)]
    fn bury(&self, process: &ProcessId) {
        bury(process);
    }
}

#[inline(never)]
fn insert_child(creator: &ProcessId, process: &ProcessId, record: &mut Record) -> bool {
    records::insert_child(&Map, creator, process, record)
}

#[inline(never)]
fn inherit(creator: &ProcessId, process: &ProcessId, event: &mut Event, is_followed: bool) {
    membership::inherit(&Map, creator, process, is_followed, |slot, tree| {
        events::emit(slot, tree, event, false);
    });
}

#[inline(never)]
fn leave_all(process: &ProcessId, event: &mut Event) {
    membership::leave_all(&Map, process, |slot, tree| {
        events::emit(slot, tree, event, true);
    });
}

#[inline(never)]
fn leave_unseen(process: &ProcessId) {
    membership::leave_unseen(&Map, process);
}

#[inline(never)]
fn bury(process: &ProcessId) {
    records::bury(&Map, process);
}

/// Reports `event` to every tree of `process`.
#[inline(never)]
pub(crate) fn report(process: &ProcessId, event: &mut Event, urgent: bool, is_exec: bool) {
    membership::for_each(&Map, process, |_, membership, tree| {
        if is_exec {
            tree.execs.increment();
        }
        events::emit(membership.slot, tree, event, urgent);
    });
}

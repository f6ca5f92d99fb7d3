//! What the hooks do at a birth, a death, and a death that no hook saw: the order of the steps, on
//! which all that userspace relies upon rests. Over a store whose calls are single steps, like
//! [`crate::records`].

use crate::{
    ProcessId, Record,
    membership::{self, Trees},
    records,
};

/// The host as the hooks change it. What is here beside the maps can be a function of its own in
/// the kernel half, where the stack is short.
pub trait Lifecycle: Trees {
    /// A notification.
    type Event;

    /// Puts `event` into the ring of a slot. An urgent one wakes the watcher.
    fn emit(&self, slot: u32, tree: Self::Tree, event: &mut Self::Event, urgent: bool);
    /// Writes a death into the flight recorder.
    fn log(&self, process: &ProcessId, event: &mut Self::Event);

    /// Does what [`records::insert_child`] does.
    #[inline(always)]
    fn insert_child(&self, creator: &ProcessId, process: &ProcessId, record: &mut Record) -> bool
    where
        Self: Sized,
    {
        records::insert_child(self, creator, process, record)
    }

    /// Does what [`membership::inherit`] does, and reports it.
    #[inline(always)]
    fn inherit(
        &self,
        creator: &ProcessId,
        process: &ProcessId,
        event: &mut Self::Event,
        is_followed: bool,
    ) where
        Self: Sized,
    {
        membership::inherit(self, creator, process, is_followed, |slot, tree| {
            self.emit(slot, tree, event, false);
        });
    }

    /// Does what [`membership::leave_all`] does, and reports it.
    #[inline(always)]
    fn leave_all(&self, process: &ProcessId, event: &mut Self::Event)
    where
        Self: Sized,
    {
        membership::leave_all(self, process, |slot, tree| {
            self.emit(slot, tree, event, true);
        });
    }

    /// Does what [`membership::leave_unseen`] does.
    #[inline(always)]
    fn leave_unseen(&self, process: &ProcessId)
    where
        Self: Sized,
    {
        membership::leave_unseen(self, process);
    }

    /// Does what [`records::bury`] does.
    #[inline(always)]
    fn bury(&self, process: &ProcessId)
    where
        Self: Sized,
    {
        records::bury(self, process);
    }
}

/// Handles the birth of `process`, in the context of its creator and before it can run. The record
/// comes first: whoever finds a member finds its record.
#[inline(always)]
pub fn born<L: Lifecycle>(
    host: &L,
    creator: &ProcessId,
    process: &ProcessId,
    record: &mut Record,
    event: &mut L::Event,
) {
    let is_followed = host.insert_child(creator, process, record);
    host.inherit(creator, process, event, is_followed);
}

/// Handles the death of `process`, whose exit the caller has claimed
/// ([`records::claim_exit`]). The record is marked dead before the membership ends: who makes a
/// process a member and finds the record live afterwards has come before the exit hook looks for
/// memberships. `fill` writes the event into the record, `name` the creator into the event.
#[inline(always)]
pub fn died<L: Lifecycle>(
    host: &L,
    process: &ProcessId,
    event: &mut L::Event,
    fill: impl FnOnce(&mut Record, &L::Event),
    name: impl FnOnce(&mut L::Event, ProcessId),
) {
    let creator = records::mark_dead(host, process, |record| fill(record, event));
    name(event, creator.unwrap_or(ProcessId::NONE));
    host.leave_all(process, event);
    if creator.is_some() {
        host.log(process, event);
        host.bury(process);
    }
}

/// Does for `process`, which userspace has seen to be gone, what its exit hook would have done.
/// Returns whether the exit had gone unseen. One caller at a time: it holds the lock of the
/// tracker. The record still holds its own reference then, so it cannot vanish.
#[inline(always)]
pub fn settle<L: Lifecycle>(host: &L, process: &ProcessId, fill: impl FnOnce(&mut Record)) -> bool {
    if host.is_learning() || !records::claim_exit(host, process) {
        return false;
    }
    let died = records::mark_dead(host, process, fill);
    host.leave_unseen(process);
    if died.is_some() {
        host.bury(process);
    }
    true
}

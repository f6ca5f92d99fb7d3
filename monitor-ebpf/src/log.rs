//! The flight recorder: deaths that somebody may ask about later, although nobody watches. Which
//! they are: by a signal or of memory; with another code than 0 where something that the process
//! had created is alive, or it had a GPU open; and every other that leaves something alive.
//!
//! The race: a death on another processor can take the place of an entry while this one is being
//! written only where a whole share of deaths comes in between. A reader takes no entry whose two
//! numbers differ.

use aya_ebpf::bindings::BPF_NOEXIST;
use lifemon_ebpf::{
    Event, HELD_GPU, LogShare, OOM_KILLED, ProcessId, limits, recorder, records::tried,
};

use crate::{
    atomic::Counter,
    lineage,
    maps::{GPU_MAJORS, LOG, LOG_SHARES, RecorderView, recorder},
    task::Task,
};

/// Bits of a device number below those of the major one, inside the kernel.
const MINOR_BITS: u32 = 20;

/// Records the death in `event`, if it is one to record. The process holds its record still.
#[inline(never)]
pub(crate) fn record(process: &ProcessId, event: &Event) -> i32 {
    let children = lineage::references(process).saturating_sub(1);
    let is_odd = event.status & 0x7f != 0 || event.flags & OOM_KILLED != 0;
    let holds_gpu = event.status != 0 && holds_gpu();
    if !is_odd && !holds_gpu && children == 0 {
        return 0;
    }
    let Some(recorder) = recorder() else {
        return 0;
    };
    let Some(entry) = LOG.get_ptr_mut(place(event.uid, recorder)) else {
        return 0;
    };
    let number = recorder.recorded.next().wrapping_add(1);
    // SAFETY: an array element is always there. Others may write the same one; then its numbers
    // differ.
    unsafe {
        let begun = Counter::at(&raw mut (*entry).begun);
        if begun.exchange(0) != 0 {
            recorder.overwritten.increment();
        }
        (*entry).time_ns = event.time_ns;
        (*entry).process = *process;
        (*entry).creator = event.creator;
        (*entry).sender = event.sender;
        (*entry).sender_name = event.sender_name;
        (*entry).name = event.name;
        (*entry).status = event.status;
        (*entry).flags = event.flags | if holds_gpu { HELD_GPU } else { 0 };
        (*entry).uid = event.uid;
        (*entry).ns_pid = event.ns_pid;
        (*entry).children = children;
        Counter::at(&raw mut (*entry).ended).exchange(number);
        begun.exchange(number);
    }
    0
}

/// Returns the index of the next entry of a user.
#[inline(always)]
fn place(uid: u32, recorder: &RecorderView) -> u32 {
    let Some(share) = share(uid, recorder) else {
        return recorder::shared_index(recorder.shared.next());
    };
    // SAFETY: elements of this map are never deleted.
    let (position, shards, count, is_closed) = unsafe {
        (
            Counter::at(&raw mut (*share).position).next(),
            Counter::at(&raw mut (*share).shards),
            Counter::at(&raw mut (*share).count),
            Counter::at(&raw mut (*share).is_closed),
        )
    };
    let had = count.read();
    if recorder::asks_for_more(position, had, is_closed.read()) {
        // This position comes once, so nobody else is here for this user.
        match recorder::further_shard(recorder.growths.next()) {
            Some(shard) => {
                shards.exchange(shards.read() | shard << ((8 * had) & 63));
                count.exchange(had + 1);
            }
            None => {
                is_closed.exchange(1);
            }
        }
    }
    recorder::index(position, shards.read(), count.read())
}

/// Returns the share of a user; `None` for those who have none of their own.
#[inline(always)]
fn share(uid: u32, recorder: &RecorderView) -> Option<*mut LogShare> {
    if let Some(share) = LOG_SHARES.get_ptr_mut(uid) {
        return Some(share);
    }
    let users = if uid == 0 { 0 } else { recorder.users.next() };
    let share = LogShare {
        position: 0,
        shards: recorder::first_shard(uid, users)?,
        count: 1,
        is_closed: 0,
    };
    // On another processor the same user may be here: one of the two shares stands.
    let _ = tried(|| LOG_SHARES.insert(uid, share, u64::from(BPF_NOEXIST)));
    LOG_SHARES.get_ptr_mut(uid)
}

/// Returns whether the current process has the device file of a GPU open.
#[inline(always)]
fn holds_gpu() -> bool {
    let majors = GPU_MAJORS.load();
    if majors[0] == 0 {
        return false;
    }
    let files = Task::current().files();
    let last = files.count().min(limits::LOG_DESCRIPTORS);
    let mut found = false;
    for descriptor in 0..limits::LOG_DESCRIPTORS {
        if descriptor >= last {
            break;
        }
        let major = files.device(descriptor) >> MINOR_BITS;
        found |= major != 0
            && (major == majors[0]
                || major == majors[1]
                || major == majors[2]
                || major == majors[3]
                || major == majors[4]);
    }
    found
}

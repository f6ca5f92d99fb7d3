//! Notifications: one event into one watcher's ring, and the wakeup.
//!
//! A wakeup costs more than all maps together, so a sleeping watcher is woken once, for the first
//! urgent event. Every record is submitted without a wakeup; then whoever takes `sleeping` from 1
//! to 0 wakes, by an empty record that is discarded at once. The watcher sets `sleeping`, drains
//! once more, and only then sleeps. Both sides write before they read, so either the watcher sees
//! the record or the producer sees the sleeper: no wakeup is lost.
//!
//! In the kernel:
//! - A record without a wakeup keeps a later one with default flags from waking:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/ringbuf.c?h=v6.12.118#n509>

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    btf_maps::RingBuf,
    helpers::{bpf_ktime_get_boot_ns, bpf_ringbuf_query},
};
use lifemon_ebpf::{EVENT_EXIT, Event, ProcessId, limits};

use crate::{
    maps::{RINGS, TreeView},
    task::Task,
};

type Ring = RingBuf<Event, { limits::RING_BYTES as usize }>;

/// Makes `event` a new one about `process`, with nothing known. Field by field: a whole event would
/// go over the stack.
#[inline(always)]
pub(crate) fn begin(event: &mut Event, kind: u32, process: ProcessId) {
    // SAFETY: the helper has no preconditions.
    event.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    event.process = process;
    event.creator = ProcessId::NONE;
    event.sender = ProcessId::NONE;
    event.sender_name = [0; 16];
    event.name = [0; 16];
    event.cgroup_id = 0;
    event.kind = kind;
    event.status = 0;
    event.flags = 0;
    event.uid = 0;
    event.ns_pid = 0;
    event.slot = 0;
}

/// Adds to `event` the user, the pid in its namespace and the control group of the process of
/// `task`.
#[inline(always)]
pub(crate) fn describe(event: &mut Event, task: Task) {
    event.uid = task.uid();
    event.ns_pid = task.leader().namespace_pid();
    event.cgroup_id = task.cgroup_id();
}

/// Puts `event` into the ring of `slot`, if its watcher brought one; counts it when it is full, and
/// for all but deaths when only the part that is kept for deaths is left. An urgent event (a death,
/// a fatal signal) wakes the watcher.
#[inline(always)]
pub(crate) fn emit(slot: u32, tree: &TreeView, event: &mut Event, urgent: bool) {
    let Some(ring) = RINGS.get(slot) else { return };
    event.slot = slot;
    let is_death = event.kind == EVENT_EXIT;
    let (used, part) = if is_death {
        (0, 1)
    } else {
        let part = query(ring, BPF_RB_RING_SIZE) / limits::RING_PARTS;
        (query(ring, BPF_RB_AVAIL_DATA), part)
    };
    if used > part * (limits::RING_PARTS - 1) {
        tree.lost_events.increment();
        wake(ring, tree);
        return;
    }
    // Straight from the map that the event is in: no copy over the stack.
    if ring
        .output_untyped::<Event>(&*event, u64::from(BPF_RB_NO_WAKEUP))
        .is_err()
    {
        tree.lost_events.increment();
        wake(ring, tree);
        return;
    }
    // More is in use than should wait for the watcher's next tick.
    if urgent || is_death || used > part {
        wake(ring, tree);
    }
}

/// Returns one of the numbers that the kernel keeps of a ring.
#[inline(always)]
fn query(ring: &Ring, what: u32) -> u64 {
    let map = core::ptr::from_ref(ring).cast_mut();
    // SAFETY: the helper only reads counters of the ring that the look-up returned.
    unsafe { bpf_ringbuf_query(map.cast(), u64::from(what)) }
}

#[inline(always)]
fn wake(ring: &Ring, tree: &TreeView) {
    // Whoever takes the word from 1 to 0 wakes: one wakeup for each sleep.
    if tree.sleeping.exchange(0) == 0 {
        return;
    }
    match ring.reserve_untyped::<u64>(0) {
        Some(entry) => entry.discard(u64::from(BPF_RB_FORCE_WAKEUP)),
        // A full ring with a sleeper: it looks at its next tick.
        None => {
            tree.sleeping.exchange(1);
        }
    }
}

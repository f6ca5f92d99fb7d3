//! A process dies: no thread of it can return to user code any more. Comes before its children are
//! reparented, before `wait`, SIGCHLD and the pidfd, and before the pid can be used again (I2).
//!
//! Up to Linux 6.19 [`exit`] alone is attached. From 7.0 on a task can lose the processor in the
//! middle of it, and the kernel skips it for whoever dies on that processor meanwhile. There
//! [`exit_guarded`] comes first, which the kernel runs with preemption off. That one is skipped
//! only while a task that was in the middle of a system call on a BPF map has lost the processor;
//! then [`exit`] stands in. Both claim the death by its key, so it is handled once; each has a room
//! of its own, because the one can run while a run of the other waits for the processor.
//!
//! In the kernel:
//! - `live` goes down before the tracepoint:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n907>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n945>
//! - From 6.16 on the tracepoint comes before memory is released, with `group_dead`:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v7.2.13#n958>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/trace/events/sched.h?h=v7.2.13#n335>
//! - All that others see of a death follows it:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n966>
//! - The status that `wait` reports:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n1163>

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use lifemon_ebpf::{EVENT_EXIT, Event, OOM_KILLED, ProcessId, Record, lifecycle, records};

use crate::{
    events,
    lineage::Map,
    maps::{HAS_GROUP_DEAD, OOM_VICTIMS, Room, Scratch, scratch, tree},
    signal,
    task::{Kernel, Task, offset},
};

const SIGKILL: u32 = 9;

/// Runs on `sched_process_exit(task[, group_dead])`, for every thread.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg::<*const u8>(0));
    if is_last(task, || ctx.arg::<u8>(1)) {
        died(&ctx, task, Room::Exit);
    }
    0
}

/// Runs on the same event in the form of the tracing files, for the current task.
#[tracepoint]
pub(crate) fn exit_guarded(ctx: TracePointContext) -> i32 {
    let task = Task::current();
    let record = Kernel(ctx.as_ptr().cast::<u8>());
    if is_last(task, || record.read(offset!(exit_group_dead))) {
        died(&ctx, task, Room::ExitGuarded);
    }
    0
}

/// Returns whether no other thread of the group is left: as the kernel says, which is true for
/// exactly one of them, or where it does not, by their number.
#[inline(always)]
fn is_last(task: Task, group_dead: impl FnOnce() -> u8) -> bool {
    if HAS_GROUP_DEAD.load() != 0 {
        group_dead() != 0
    } else {
        task.live_threads() == 0
    }
}

#[inline(always)]
fn died(ctx: &impl EbpfContext, task: Task, room: Room) {
    let process = task.process();
    if task.is_kernel_thread() || !records::claim_exit(&Map, &process) {
        return;
    }
    let Some(Scratch { event, .. }) = scratch(room) else {
        return;
    };
    describe(event, task, process);
    if let Some(all) = tree(0) {
        all.exits.increment();
    }
    lifecycle::died(&Map, &process, event, note, |event, creator| {
        event.creator = creator;
    });
    debug!(ctx, "exit {} status {}", process.pid, event.status);
}

/// Makes `event` say how the process dies. A function of its own: what it needs of the stack is
/// given back before the burial takes more (512 bytes for all that call each other).
#[inline(never)]
fn describe(event: &mut Event, task: Task, process: ProcessId) {
    events::begin(event, EVENT_EXIT, process);
    event.name = task.leader().name();
    event.status = task.wait_status();
    events::describe(event, task);
    let signal = event.status & 0x7f;
    if signal != 0 {
        signal::explain(event, signal);
    }
    if signal == SIGKILL
        && (was_oom_victim(process, process.pid) || was_oom_victim(process, task.tid()))
    {
        event.flags |= OOM_KILLED;
    } else if signal == SIGKILL {
        signal::explain_closer(event);
    }
}

/// Returns whether the out-of-memory killer chose thread `tid` since the process started.
#[inline(always)]
fn was_oom_victim(process: ProcessId, tid: u32) -> bool {
    // SAFETY: a map value stays mapped while a program runs, and any value that was ever in this
    // map is a time; an old one is told by the start of the process.
    OOM_VICTIMS
        .get_ptr(tid)
        .is_some_and(|at| unsafe { at.read_volatile() } >= process.start_ns)
}

/// Writes the death into the record.
#[inline(always)]
fn note(record: &mut Record, event: &Event) {
    record.exit_ns = event.time_ns;
    record.status = event.status;
    record.exit_flags = event.flags;
    record.sender = event.sender;
    record.sender_name = event.sender_name;
    record.name = event.name;
    record.cgroup_id = event.cgroup_id;
}

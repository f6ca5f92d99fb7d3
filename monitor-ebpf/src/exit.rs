//! A process dies: no thread of it can return to user code any more. Comes before its children are
//! reparented, before `wait`, SIGCHLD and the pidfd, and before the pid can be used again (I2).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use lifemon_ebpf::{EVENT_EXIT, Event, OOM_KILLED, ProcessId, Record};

use crate::{
    atomic, events, lineage,
    maps::{HAS_GROUP_DEAD, Hook, OOM_VICTIMS, Scratch, scratch, tree},
    members, signal,
    task::Task,
};

const SIGKILL: u32 = 9;

/// `sched_process_exit(task[, group_dead])`, for every thread.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg::<*const u8>(0));
    if HAS_GROUP_DEAD.load() != 0 {
        // True for exactly one thread of the group.
        if ctx.arg::<u8>(1) == 0 {
            return 0;
        }
    } else if task.live_threads() != 0 {
        return 0;
    }
    let process = task.process();
    if task.is_kernel_thread() || !lineage::claim_exit(&process) {
        return 0;
    }
    let Some(Scratch { event, .. }) = scratch(Hook::Exit) else {
        return 0;
    };
    describe(event, task, process);
    if let Some(all) = tree(0) {
        // SAFETY: an array element is always there.
        unsafe { atomic::increment(&raw mut (*all).exits) };
    }
    let creator = lineage::mark_dead(&process, |record| note(record, event));
    event.creator = creator.unwrap_or(ProcessId::NONE);
    members::leave_all(&process, event);
    if creator.is_some() {
        lineage::bury(&process);
    }
    debug!(&ctx, "exit {} status {}", process.pid, event.status);
    0
}

/// Makes `event` say how the process dies.
#[inline(always)]
fn describe(event: &mut Event, task: Task, process: ProcessId) {
    events::begin(event, EVENT_EXIT, process);
    event.name = task.leader().name();
    event.status = task.wait_status();
    event.uid = task.uid();
    event.ns_pid = task.leader().namespace_pid();
    event.cgroup_id = task.cgroup_id();
    let signal = event.status & 0x7f;
    if signal != 0 {
        signal::explain(event, signal);
    }
    if signal == SIGKILL
        && (was_oom_victim(process, process.pid) || was_oom_victim(process, task.tid()))
    {
        event.flags |= OOM_KILLED;
    }
}

/// Whether the out-of-memory killer chose thread `tid` since the process started.
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

//! A process runs another program: its name, user, session and cgroup are read again. The identity
//! stays, also when a thread that is not the leader called exec.
//!
//! One of two programs is attached: from Linux 7.0 on [`exec_guarded`], for the reason that
//! [`crate::exit`] gives.
//!
//! In the kernel:
//! - A thread that calls exec takes over the pid and the start of its leader:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/fs/exec.c?h=v6.12.118#n1099>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/fs/exec.c?h=v6.12.118#n1112>

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use lifemon_ebpf::{EVENT_EXEC, Event, ProcessId};

use crate::{
    events,
    maps::{LINEAGE, Room, Scratch, scratch},
    members,
    task::Task,
};

/// Runs on `sched_process_exec(task, old_pid, bprm)`, in the context of that task.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn exec(ctx: BtfTracePointContext) -> i32 {
    executes(&ctx, Task::new(ctx.arg::<*const u8>(0)));
    0
}

/// Runs on the same event in the form of the tracing files, which runs with preemption off.
#[tracepoint]
pub(crate) fn exec_guarded(ctx: TracePointContext) -> i32 {
    executes(&ctx, Task::current());
    0
}

#[inline(always)]
fn executes(ctx: &impl EbpfContext, task: Task) {
    let process = task.process();
    let Some(Scratch { event, .. }) = scratch(Room::Exec) else {
        return;
    };
    events::begin(event, EVENT_EXEC, process);
    event.name = task.name();
    events::describe(event, task);
    event.creator = refresh(event, task);
    members::report(&process, event, false, true);
    debug!(ctx, "exec {}", process.pid);
}

/// Writes what exec changed into the process's own record; its creator.
#[inline(always)]
fn refresh(event: &Event, task: Task) -> ProcessId {
    let Some(record) = LINEAGE.get_ptr_mut(event.process) else {
        return ProcessId::NONE;
    };
    // SAFETY: the current process's own record: it lives, so it cannot vanish.
    unsafe {
        (*record).name = event.name;
        (*record).uid = event.uid;
        (*record).cgroup_id = event.cgroup_id;
        (*record).session = task.session();
        (*record).exec_ns = event.time_ns;
        (*record).creator
    }
}

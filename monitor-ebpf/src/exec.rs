//! A process runs another program: its name, user and cgroup are read again. The identity stays,
//! also when a thread that is not the leader called exec.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use lifemon_ebpf::{EVENT_EXEC, Event, ProcessId};

use crate::{
    events,
    maps::{Hook, LINEAGE, Scratch, scratch},
    members,
    task::Task,
};

/// `sched_process_exec(task, old_pid, bprm)`, in the context of that task.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg::<*const u8>(0));
    let process = task.process();
    let Some(Scratch { event, .. }) = scratch(Hook::Exec) else {
        return 0;
    };
    events::begin(event, EVENT_EXEC, process);
    event.name = task.name();
    event.uid = task.uid();
    event.ns_pid = task.namespace_pid();
    event.cgroup_id = task.cgroup_id();
    event.creator = refresh(event);
    members::report(&process, event, false, true);
    debug!(&ctx, "exec {}", process.pid);
    0
}

/// Writes what exec changed into the process's own record; its creator.
#[inline(always)]
fn refresh(event: &Event) -> ProcessId {
    let Some(record) = LINEAGE.get_ptr_mut(event.process) else {
        return ProcessId::NONE;
    };
    // SAFETY: the current process's own record: it lives, so it cannot vanish.
    unsafe {
        (*record).name = event.name;
        (*record).uid = event.uid;
        (*record).cgroup_id = event.cgroup_id;
        (*record).creator
    }
}

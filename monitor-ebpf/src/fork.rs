//! A process has been created. Runs in the creator's context, when the child is linked and before
//! it can run, so nothing of it can be missed (I1).
//!
//! One of two programs is attached. From Linux 7.0 on a task can lose the processor in the middle
//! of [`fork`], and the kernel skips the program for whoever forks on that processor meanwhile.
//! [`fork_waking`] runs a moment later, under the lock of the run queue that the child is put on:
//! with interrupts off, so nobody comes between.
//!
//! In the kernel:
//! - The child is in the list of tasks before the hook, and woken after it:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n2558>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n2779>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n2800>
//! - A fork that has passed the test for a fatal signal is completed:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n2521>
//! - `CLONE_PARENT` changes the parent, not the caller:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n2492>
//! - `sched_wakeup_new` under the lock:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/sched/core.c?h=v6.12.118#n4854>

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use lifemon_ebpf::{EVENT_FORK, ProcessId, lifecycle};

use crate::{
    events,
    lineage::{self, Map},
    maps::{Room, Scratch, scratch, tree},
    task::Task,
};

/// Runs on `sched_process_fork(parent, child)`; `parent` is the thread that called, whatever
/// `CLONE_PARENT` makes of the child's parent.
#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn fork(ctx: BtfTracePointContext) -> i32 {
    let parent = Task::new(ctx.arg::<*const u8>(0));
    created(&ctx, parent, Task::new(ctx.arg::<*const u8>(1)));
    0
}

/// Runs on `sched_wakeup_new(child)`, in the context of who called clone. Threads that a helper of
/// the kernel makes for a process come here as well, and are no processes.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub(crate) fn fork_waking(ctx: BtfTracePointContext) -> i32 {
    created(&ctx, Task::current(), Task::new(ctx.arg::<*const u8>(0)));
    0
}

#[inline(always)]
fn created(ctx: &impl EbpfContext, parent: Task, child: Task) {
    // Threads are no processes; kernel threads have no lineage.
    if !child.is_leader() || child.is_kernel_thread() {
        return;
    }
    let creator = if parent.is_kernel_thread() {
        ProcessId::NONE
    } else {
        parent.process()
    };
    let process = child.process();
    if let Some(all) = tree(0) {
        all.forks.increment();
    }
    let Some(Scratch { event, record }) = scratch(Room::Fork) else {
        return;
    };
    lineage::describe(record, child, creator);
    events::begin(event, EVENT_FORK, process);
    event.creator = creator;
    event.name = record.name;
    event.uid = record.uid;
    event.ns_pid = record.ns_pid;
    event.cgroup_id = record.cgroup_id;
    lifecycle::born(&Map, &creator, &process, record, event);
    debug!(ctx, "fork {} -> {}", creator.pid, process.pid);
}

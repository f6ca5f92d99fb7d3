//! The out-of-memory killer has chosen a victim.
//!
//! In the kernel:
//! - SIGKILL is sent before the mark:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/mm/oom_kill.c?h=v6.12.118#n953>
//! - The argument is a task:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/trace/events/oom.h?h=v6.1.192#n76>

use aya_ebpf::{
    bindings::BPF_ANY, helpers::bpf_ktime_get_boot_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    maps::{OOM_ARG_IS_TASK, OOM_VICTIMS},
    task::Task,
};

/// `mark_victim(task, uid)` since 6.8, `mark_victim(pid)` before. Either way it names a thread: the
/// leader, or another one that still has memory.
#[btf_tracepoint(function = "mark_victim")]
pub(crate) fn oom(ctx: BtfTracePointContext) -> i32 {
    let tid = if OOM_ARG_IS_TASK.load() != 0 {
        Task::new(ctx.arg::<*const u8>(0)).tid()
    } else {
        ctx.arg::<u32>(0)
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let _ = OOM_VICTIMS.insert(tid, now, u64::from(BPF_ANY));
    0
}

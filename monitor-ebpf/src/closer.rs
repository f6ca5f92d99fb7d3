//! Lets no condemned process back to user code (I4). Attached only while something is condemned, by
//! a link that ends with the process that kills.
//!
//! Every return from a system call passes here, on x86-64 the first return of a new child among
//! them: so a child that a condemned process has created dies before its first instruction. On
//! arm64 that one passes no tracepoint; there the closer is attached to the beginning of system
//! calls as well, and a condemned process creates no child: the kernel refuses it to whoever is
//! about to be killed. Only the child of a fork that had begun by then gets to run, up to its first
//! system call. What never calls the kernel is met by the killing passes.
//!
//! Where a tree is condemned in the name of a user, the members of others are let through.
//!
//! One of two programs is attached: from Linux 7.0 on [`closer_guarded`], which the kernel runs
//! with preemption off, for the reason that [`crate::exit`] gives.
//!
//! In the kernel:
//! - A new process returns through the exit of system calls:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/arch/x86/entry/entry_64.S?h=v6.1.192#n288>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/entry/common.c?h=v6.12.118#n172>
//! - On arm64 it does not:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/arch/arm64/kernel/entry.S?h=v6.12.118#n858>
//! - `bpf_send_signal` can refuse:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v6.12.118#n829>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v6.12.118#n845>

use aya_ebpf::{
    helpers::bpf_send_signal,
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};

use lifemon_ebpf::{is_meant, membership};

use crate::{lineage::Map, maps::host, task::Task};

const SIGKILL: u32 = 9;

/// Runs on `sys_exit` or `sys_enter`, in the context of the task that calls.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn closer(_ctx: RawTracePointContext) -> i32 {
    close();
    0
}

/// Runs on the same event in the form of the tracing files.
#[tracepoint]
pub(crate) fn closer_guarded(_ctx: TracePointContext) -> i32 {
    close();
    0
}

#[inline(always)]
fn close() {
    let Some(host) = host() else { return };
    let layers = host.condemned_layers.read();
    if layers == 0 {
        return;
    }
    let task = Task::current();
    let Some(tree) = membership::condemned(&Map, &task.process(), layers) else {
        return;
    };
    // The credentials are those of this moment: a member can have executed a program of another
    // user since it was condemned.
    if is_meant(tree.condemned.read(), task.uid()) {
        // SAFETY: the helper has no preconditions. A signal that is pending already does no harm.
        unsafe { bpf_send_signal(SIGKILL) };
    }
}

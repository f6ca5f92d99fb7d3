//! What userspace asks for one record, by pid and start time: to remove it because nobody needs it
//! (`sweep`), to shorten the row of ghosts above it (`compact`), or to do what the exit hook would
//! have done (`settle`). Never attached: all are run through the test-run call.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext, helpers::bpf_ktime_get_boot_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use lifemon_ebpf::{EXIT_UNSEEN, ProcessId, lifecycle, rules};

use crate::{lineage::Map, maps::is_learning};

/// Arguments: pid, start in ns since boot.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn sweep(ctx: RawTracePointContext) -> i32 {
    if is_learning() {
        return 0;
    }
    rules::sweep(&Map, &argument(&ctx));
    0
}

/// Arguments: pid, start in ns since boot. One caller at a time: it holds the lock of the tracker.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn compact(ctx: RawTracePointContext) -> i32 {
    if is_learning() {
        return 0;
    }
    rules::compact(&Map, &argument(&ctx));
    0
}

/// Arguments: pid, start in ns since boot, of a process that userspace has seen to be over, so that
/// its exit hook has run or never will.
///
/// From Linux 7 on a hook can be preempted, and the kernel skips it for whoever dies on that CPU
/// meanwhile. The record still holds its own reference then, so it cannot vanish; one caller at a
/// time settles (it holds the lock of the tracker). Returns 1 when the exit had gone unseen.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_enter")]
pub(crate) extern "C" fn settle(ctx: *mut c_void) -> i32 {
    let process = argument(&RawTracePointContext::new(ctx));
    let settled = lifecycle::settle(&Map, &process, |record| {
        // SAFETY: the helper has no preconditions.
        record.exit_ns = unsafe { bpf_ktime_get_boot_ns() };
        record.exit_flags = EXIT_UNSEEN;
    });
    i32::from(settled)
}

/// Returns the process that the arguments name.
#[inline(always)]
fn argument(ctx: &RawTracePointContext) -> ProcessId {
    let args = ctx.as_ptr().cast::<u64>();
    // SAFETY: the context of a raw tracepoint is an array of 64-bit arguments; the caller gives
    // two.
    let (pid, start_ns) = unsafe { (*args, *args.add(1)) };
    ProcessId::new(pid as u32, start_ns)
}

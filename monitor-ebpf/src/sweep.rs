//! Removes one record that nobody needs, on request of userspace. Never attached: it is run through
//! the test-run call, with the pid and the start time of the record as arguments.

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use lifemon_ebpf::{ProcessId, rules};

use crate::{lineage::Map, maps::is_learning};

/// Arguments: pid, start in ns since boot.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn sweep(ctx: RawTracePointContext) -> i32 {
    if is_learning() {
        return 0;
    }
    let args = ctx.as_ptr().cast::<u64>();
    // SAFETY: the context of a raw tracepoint is an array of 64-bit arguments; the caller gives two.
    let (pid, start_ns) = unsafe { (*args, *args.add(1)) };
    rules::sweep(&Map, &ProcessId::new(pid as u32, start_ns));
    0
}

//! Passes over all processes of the host, in the kernel and so without races against `/proc`: learn
//! those that existed before, and print what no file says of them.
//!
//! A pass runs when userspace reads the iterator.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use lifemon_ebpf::{SUBREAPER, Traits};

use crate::{learn, maps, task::Task};

/// Context of the iterator, as the kernel defines it.
#[repr(C)]
struct Visit {
    meta: *const Meta,
    task: *const u8,
}

/// What iterators of all kinds have in common, as the kernel defines it.
#[repr(C)]
struct Meta {
    output: *mut seq_file,
}

impl Visit {
    /// Returns the process that is visited, by its leader, and where its traits are printed. The
    /// last call comes without a task.
    #[inline(always)]
    fn process(ctx: *mut c_void) -> Option<(Task, *mut seq_file)> {
        // SAFETY: the kernel passes the context of a task iterator.
        let (task, output) = unsafe {
            let visit = &*ctx.cast::<Self>();
            (visit.task, (*visit.meta).output)
        };
        if task.is_null() {
            return None;
        }
        let task = Task::new(task);
        (task.is_leader() && !task.is_kernel_thread()).then_some((task, output))
    }
}

/// Learns the processes that are older than tracking. Iterators have been seen to begin after
/// process 1 (Linux 6.18 in a small virtual machine): that one is learnt as the creator of others.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn learn(ctx: *mut c_void) -> i32 {
    if let (Some((task, _)), Some(pass)) = (Visit::process(ctx), maps::pass()) {
        pass.seen.increment();
        learn::visit(task);
    }
    0
}

/// Prints the traits of every process that has some.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn traits(ctx: *mut c_void) -> i32 {
    let Some((task, output)) = Visit::process(ctx) else {
        return 0;
    };
    if task.is_subreaper() {
        let mut found = Traits::new(task.process(), SUBREAPER);
        // SAFETY: the context's own output. A full buffer ends this read, and the kernel comes back
        // to the same task in the next.
        unsafe { bpf_seq_write(output, (&raw mut found).cast(), size_of::<Traits>() as u32) };
    }
    0
}

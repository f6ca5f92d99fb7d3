//! A process takes another name, as servers and their workers do: the name in its record is the
//! present one.
//!
//! From Linux 7.0 on the kernel can skip the hook, as [`crate::exit`] says. Then the record keeps
//! the name of before: there is no form of this event that cannot be skipped and says which thread
//! is renamed.
//!
//! In the kernel:
//! - A process can rename its own threads alone, so the hook runs in the process that is renamed:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/fs/proc/base.c?h=v6.12.118#n1654>

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use lifemon_ebpf::EVENT_RENAME;

use crate::{
    events,
    maps::{LINEAGE, Room, Scratch, scratch},
    members,
    task::{Kernel, Task},
};

/// Runs on `task_rename(task, name)`, before the name is changed.
#[btf_tracepoint(function = "task_rename")]
pub(crate) fn rename(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg::<*const u8>(0));
    // The name of the process is that of its leader.
    if !task.is_leader() || task.is_kernel_thread() {
        return 0;
    }
    let process = task.process();
    let Some(record) = LINEAGE.get_ptr_mut(process) else {
        return 0;
    };
    let Some(Scratch { event, .. }) = scratch(Room::Rename) else {
        return 0;
    };
    events::begin(event, EVENT_RENAME, process);
    Kernel(ctx.arg::<*const u8>(1)).read_text(&mut event.name);
    // SAFETY: the current process's own record: it lives, so it cannot vanish.
    unsafe {
        (*record).name = event.name;
        event.creator = (*record).creator;
    }
    events::describe(event, task);
    members::report(&process, event, false, false);
    0
}

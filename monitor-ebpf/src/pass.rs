//! Passes over all processes of the host, in the kernel and so without races against `/proc`: learn
//! those that existed before, label the members of a newly watched tree (I5), and print what no
//! file says.
//!
//! A pass runs when userspace reads the iterator; what it is to do and what it found is in `PASS`.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use lifemon_ebpf::{
    Membership, PASS_LABEL, PASS_LEARN, ProcessId, SUBREAPER, Traits,
    membership::{self, Visited, Wanted},
    rules::Step,
};

use crate::{
    learn,
    lineage::Map,
    maps::{self, PassView},
    task::Task,
};

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

    /// Returns the process that is visited, if the pass is of this kind.
    #[inline(always)]
    fn asked(ctx: *mut c_void, kind: u32) -> Option<(Task, &'static PassView)> {
        let (task, _) = Self::process(ctx)?;
        let pass = maps::pass().filter(|pass| pass.kind.read() == kind)?;
        pass.seen.increment();
        Some((task, pass))
    }
}

/// Learns the processes that are older than tracking. Iterators have been seen to begin after
/// process 1 (Linux 6.18 in a small virtual machine): that one is learnt as the creator of others.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn learn(ctx: *mut c_void) -> i32 {
    if let Some((task, _)) = Visit::asked(ctx, PASS_LEARN) {
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

/// Makes every living descendant of the root a member.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn label(ctx: *mut c_void) -> i32 {
    let Some((task, pass)) = Visit::asked(ctx, PASS_LABEL) else {
        return 0;
    };
    let wanted = Wanted {
        root: pass.root.read(),
        layer: pass.layer.read(),
        membership: Membership {
            slot: pass.slot.read(),
            generation: pass.generation.read(),
        },
    };
    let is_alive = || task.live_threads() != 0;
    let step = |at: &mut ProcessId| match look(at, &wanted) {
        INSIDE => Step::Inside,
        UNRECORDED => Step::Unrecorded,
        holds => Step::Up(holds),
    };
    match membership::label(&Map, &task.process(), &wanted, is_alive, step) {
        Visited::Settled => {}
        Visited::Inserted => pass.inserted.increment(),
        Visited::Unsettled => pass.unsettled.increment(),
        Visited::Unrecorded => pass.unrecorded.increment(),
        Visited::Conflict => pass.conflicts.increment(),
        Visited::Full => pass.failed.increment(),
    }
    0
}

/// What [`look`] says instead of how a creator is held.
const INSIDE: u64 = u64::MAX;
const UNRECORDED: u64 = u64::MAX - 1;

/// One step of the climb: in one word and not inlined, so that the verifier forgets on which way it
/// came to the answer, and many steps cost it little.
#[inline(never)]
fn look(at: &mut ProcessId, wanted: &Wanted) -> u64 {
    match membership::look(&Map, at, wanted) {
        Step::Inside => INSIDE,
        Step::Unrecorded => UNRECORDED,
        Step::Up(holds) => holds,
    }
}

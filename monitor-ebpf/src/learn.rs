//! Learns processes that are older than tracking as they die, while tracking starts;
//! [`crate::pass`] comes to all others. The rule is [`learning::learn`].
//!
//! The program is attached after the exit hooks and before the fork hook, and is gone when
//! everything has been learnt.

use aya_ebpf::{
    helpers::bpf_ktime_get_boot_ns, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use lifemon_ebpf::{
    DEAD, EXIT_UNSEEN, INFERRED, LEARNING, LIVE, ProcessId,
    learning::{self, Ancestor, Processes},
    records::{self, EEXIST},
    rules::{Lineage, Link},
};

use crate::{
    atomic::Counter,
    lineage::{self, Map},
    maps::{LINEAGE, PassView, Room, Scratch, host, is_learning, pass, scratch},
    task::Task,
};

/// Learns a process that dies. Its exit hook has run: where that found no record, the death is
/// written here.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn learn_by_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg::<*const u8>(0));
    if !is_learning() || task.live_threads() != 0 || task.is_kernel_thread() {
        return 0;
    }
    let Some(host) = host() else {
        return 0;
    };
    // Counted before the flag is asked: userspace sets it before it waits for the count to be 0. So
    // until this has ended no record is removed.
    host.learners.increment();
    if host.learning.fetch() == LEARNING {
        let task = task.leader();
        let room = Room::LearnByExit;
        learning::learn(&Map, Older { task, room });
        end(&task.process());
    }
    host.learners.decrement();
    0
}

/// Visits a process in a pass.
#[inline(always)]
pub(crate) fn visit(task: Task) {
    let room = Room::LearnByPass;
    learning::visit(&Map, Older { task, room });
}

/// A process that may be older than tracking, and the room where its record is written.
#[derive(Clone, Copy)]
pub(crate) struct Older {
    task: Task,
    room: Room,
}

impl Processes for Map {
    type Task = Older;

    #[inline(always)]
    fn id(&self, older: Older) -> ProcessId {
        older.task.process()
    }

    #[inline(always)]
    fn parent(&self, older: Older) -> Option<Older> {
        let parent = older.task.real_parent().leader();
        (parent.pid() != 0 && !parent.is_kernel_thread()).then_some(Older {
            task: parent,
            ..older
        })
    }

    #[inline(always)]
    fn can_run(&self, older: Older) -> bool {
        older.task.live_threads() != 0
    }

    #[inline(always)]
    fn nearest(&self, older: Older) -> Ancestor<Older> {
        match nearest(older.task, older.room) {
            KERNEL => Ancestor::Kernel,
            NOT_YET => Ancestor::NotYet,
            task => Ancestor::Task(Older {
                task: Task::new(task as *const u8),
                ..older
            }),
        }
    }

    #[inline(always)]
    fn link(&self, id: &ProcessId) -> Option<Link> {
        Lineage::link(self, id)
    }

    #[inline(always)]
    fn is_recorded(&self, id: &ProcessId) -> bool {
        LINEAGE.get_ptr(id).is_some()
    }

    #[inline(always)]
    fn insert(&self, older: Older, creator: &ProcessId, holds_creator: u64) -> bool {
        insert(older.task, creator, holds_creator, older.room)
    }

    #[inline(always)]
    fn hold(&self, id: &ProcessId, by: &ProcessId) -> bool {
        records::hold(self, id, by)
    }

    #[inline(always)]
    fn let_go(&self, id: &ProcessId, by: &ProcessId) {
        self.unreference(id, by);
    }

    #[inline(always)]
    fn connect(&self, id: &ProcessId, due: u64, creator: &ProcessId, holds_creator: u64) -> bool {
        let Some(record) = LINEAGE.get_ptr_mut(id) else {
            return false;
        };
        // SAFETY: no record is removed while tracking starts. Who wins the word writes the creator.
        unsafe {
            let won = Counter::at(&raw mut (*record).holds_creator).replace(due, holds_creator);
            if won {
                if (*record).creator != *creator {
                    (*record).creator = *creator;
                    (*record).origin = INFERRED;
                }
                count(|pass| &pass.inserted);
            }
            won
        }
    }

    #[inline(always)]
    fn end(&self, id: &ProcessId) {
        end(id);
    }
}

/// Answers of [`nearest`] instead of the address of a task.
const KERNEL: u64 = 0;
const NOT_YET: u64 = 1;

/// Returns the nearest ancestor in one word. Not inlined, so that the verifier forgets on which way
/// it came to the answer.
#[inline(never)]
fn nearest(task: Task, room: Room) -> u64 {
    match learning::nearest(&Map, Older { task, room }) {
        Ancestor::Task(older) => older.task.0.0 as u64,
        Ancestor::Kernel => KERNEL,
        Ancestor::NotYet => NOT_YET,
    }
}

#[inline(never)]
fn insert(task: Task, creator: &ProcessId, holds_creator: u64, room: Room) -> bool {
    let Some(Scratch { record, .. }) = scratch(room) else {
        return false;
    };
    lineage::describe(record, task, *creator);
    record.origin = INFERRED;
    record.holds_creator = holds_creator;
    let inserted = records::insert(&Map, &task.process(), record);
    match inserted {
        Ok(()) => count(|pass| &pass.inserted),
        Err(EEXIST) => {}
        Err(_) => count(|pass| &pass.failed),
    }
    inserted.is_ok()
}

/// Adds 1 to a counter of the pass that runs, whoever did it: it looks again.
#[inline(always)]
fn count(counter: impl FnOnce(&PassView) -> &Counter) {
    if let Some(pass) = pass() {
        counter(pass).increment();
    }
}

/// Marks a process dead whose exit hook found no record of it.
#[inline(always)]
fn end(process: &ProcessId) {
    let Some(record) = LINEAGE.get_ptr_mut(process) else {
        return;
    };
    // SAFETY: no record is removed while tracking starts.
    unsafe {
        if Counter::at(&raw mut (*record).state).read() != LIVE
            || !records::claim_exit(&Map, process)
        {
            return;
        }
        (*record).exit_ns = bpf_ktime_get_boot_ns();
        (*record).exit_flags = EXIT_UNSEEN;
        if Counter::at(&raw mut (*record).state).exchange(DEAD) == LIVE {
            Map.unreference(process, process);
        }
    }
}

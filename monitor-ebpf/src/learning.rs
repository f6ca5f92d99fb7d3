//! How processes that are older than tracking are learnt, as pure functions over the tasks of the
//! kernel and the records. The kernel half runs them on the real ones, the tests on a model.
//!
//! Nobody can say who created such a process; its parent stands for its creator. The race: a parent
//! can die, hand over its children and be gone at any moment. What settles it:
//!
//! - The hooks for exit and fork come first, and while tracking starts no record is removed. So
//!   whatever can still run once they are attached **will be learnt**: when a pass comes to it, as
//!   the creator of another, or as it dies. What it creates has a record at once, and holds it as
//!   soon as both are learnt.
//! - What was past the exit hook by then will not, and no descendant needs it: it is passed over,
//!   and the nearest ancestor that can run or has a record stands for the creator.
//! - The same passes learn later whom the lineage lost because its map was full: while they run, no
//!   record is removed either.
//! - Whoever is learnt holds that ancestor from that moment. When learning ends, the line above
//!   every process is held up to the first process of all; where it is not, that is reported.

use crate::{
    ANCESTOR_DUE, CREATOR_DUE, CREATOR_LOST, HELD, NOT_HELD, ProcessId, limits, rules::Link,
};

/// The processes of the host, and their records while tracking starts.
pub trait Processes {
    /// A process that has not been released.
    type Task: Copy;

    /// Returns the identity of the process.
    fn id(&self, task: Self::Task) -> ProcessId;
    /// Its parent at this moment; nothing when that is the kernel.
    fn parent(&self, task: Self::Task) -> Option<Self::Task>;
    /// Returns whether it can still return to user code.
    fn can_run(&self, task: Self::Task) -> bool;
    /// What [`nearest`] says; for who wants it to be a function of its own.
    #[inline(always)]
    fn nearest(&self, task: Self::Task) -> Ancestor<Self::Task>
    where
        Self: Sized,
    {
        nearest(self, task)
    }
    /// Returns the link of the record `id`.
    fn link(&self, id: &ProcessId) -> Option<Link>;
    /// Returns whether there is a record `id`.
    fn is_recorded(&self, id: &ProcessId) -> bool;
    /// Inserts a record of a living process unless there is one or it does not fit. Whether it did.
    fn insert(&self, task: Self::Task, creator: &ProcessId, holds_creator: u64) -> bool;
    /// Takes a reference on the record `id` for `by`. Whether there is one.
    fn hold(&self, id: &ProcessId, by: &ProcessId) -> bool;
    /// Drops a reference that [`Processes::hold`] took.
    fn let_go(&self, id: &ProcessId, by: &ProcessId);
    /// Gives the record `id` its creator if that is still `due`. Whether this call did.
    fn connect(&self, id: &ProcessId, due: u64, creator: &ProcessId, holds_creator: u64) -> bool;
    /// Marks the record `id` dead and drops its own reference, unless somebody did already.
    fn end(&self, id: &ProcessId);
}

/// Returns the identity that stands for the creator.
#[derive(Clone, Copy, Debug)]
pub enum Ancestor<T> {
    /// This one.
    Task(T),
    /// The kernel created the process, or all that are above it.
    Kernel,
    /// The next pass may know: more than [`limits::DYING_PARENTS`] dying ones are above it, or its
    /// creator has not been learnt.
    NotYet,
}

/// Visits `task` in a pass. One that cannot run any more is of no concern unless it has a
/// record.
#[inline(always)]
pub fn visit<P: Processes>(host: &P, task: P::Task) {
    if host.can_run(task) || host.is_recorded(&host.id(task)) {
        learn(host, task);
    }
}

/// Learns `task`, and its creator or who stands for it. For a pass, and for one that dies at this
/// moment in its own context.
#[inline(always)]
pub fn learn<P: Processes>(host: &P, task: P::Task) {
    let id = host.id(task);
    let mut due = ANCESTOR_DUE;
    let mut known = ProcessId::NONE;
    if let Some(link) = host.link(&id) {
        due = link.holds_creator;
        known = link.creator;
        if !matches!(due, CREATOR_DUE | ANCESTOR_DUE | CREATOR_LOST) {
            return;
        }
        if host.is_recorded(&known) {
            return connect(host, &id, due, &known);
        }
    }
    let creator = if due == ANCESTOR_DUE {
        host.nearest(task)
    } else {
        // One that is due can still run, or it would have been learnt as it died. It is the parent,
        // or the child has another one from the start (`CLONE_PARENT`) and has to wait. One that
        // was lost may have died meanwhile: then it stays lost.
        let parent = host.parent(task);
        let parent = parent.filter(|parent| host.id(*parent) == known);
        parent.map_or(Ancestor::NotYet, Ancestor::Task)
    };
    if let Ancestor::Task(creator) = creator {
        record(host, creator);
    }
    record(host, task);
    match creator {
        Ancestor::Task(creator) => connect(host, &id, due, &host.id(creator)),
        Ancestor::Kernel => {
            host.connect(&id, due, &ProcessId::NONE, NOT_HELD);
        }
        Ancestor::NotYet => {}
    }
}

/// Returns the nearest ancestor that can run or has a record.
///
/// Only who is past its last instruction is passed over. If its exit hook is still to come, it will
/// have a record, and is missing as a ghost only.
#[inline(always)]
pub fn nearest<P: Processes>(host: &P, task: P::Task) -> Ancestor<P::Task> {
    let mut at = task;
    for _ in 0..limits::DYING_PARENTS {
        let Some(parent) = host.parent(at) else {
            return Ancestor::Kernel;
        };
        if host.can_run(parent) || host.is_recorded(&host.id(parent)) {
            return Ancestor::Task(parent);
        }
        at = parent;
    }
    Ancestor::NotYet
}

/// Sees to it that `task` has a record. Its creator is due: it will be learnt itself.
#[inline(always)]
fn record<P: Processes>(host: &P, task: P::Task) {
    let id = host.id(task);
    if host.is_recorded(&id) {
        return;
    }
    let (creator, holds_creator) = match host.parent(task) {
        Some(parent) => (host.id(parent), ANCESTOR_DUE),
        None => (ProcessId::NONE, NOT_HELD),
    };
    // It may have died since it was looked at, and its exit hook found nothing.
    if host.insert(task, &creator, holds_creator) && !host.can_run(task) {
        host.end(&id);
    }
}

/// Lets `id` hold `creator`. A pass and the exit of `id` may both come to this: one of them
/// connects.
#[inline(always)]
fn connect<P: Processes>(host: &P, id: &ProcessId, due: u64, creator: &ProcessId) {
    // Without a record the map is full: the line above is lost, and that is told.
    let holds_creator = if host.hold(creator, id) {
        HELD
    } else {
        CREATOR_LOST
    };
    if holds_creator == due {
        return;
    }
    if !host.connect(id, due, creator, holds_creator) && holds_creator == HELD {
        host.let_go(creator, id);
    }
}

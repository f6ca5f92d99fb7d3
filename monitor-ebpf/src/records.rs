//! How the records are inserted, copied, held, claimed and ended, over a store whose calls are
//! single steps: the kernel half runs this on its maps, the tests on a model of them that stops
//! between any two steps.
//!
//! The race that decides the code: a deleted element is recycled at once, by another CPU, while
//! somebody still holds a pointer to it. So an element is written through only where the record
//! cannot vanish: the current process's own (it holds a reference on itself), one that it holds
//! (its creator's), or one that is claimed. Everybody else's record is copied, and the copy counts
//! only if the same element is still there under the same identity afterwards; an identity never
//! comes back.
//!
//! In the kernel:
//! - A deleted element is used again at once:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n1045>

use crate::{
    CREATOR_DUE, CREATOR_LOST, FREE, HELD, LIVE, NOT_HELD, ProcessId, Record, limits,
    rules::{self, Lineage, Link},
};

/// The answer of a map to the insertion of a key that it has.
pub const EEXIST: i32 = -17;
/// The answer of a map to the deletion of a key that it does not have.
pub const ENOENT: i32 = -2;
/// The answer of a map that is full.
pub const E2BIG: i32 = -7;

/// The lineage map, and what is counted beside it. Every call is one step, which nobody interrupts.
pub trait Records: Lineage {
    /// A place in the map. It stays, but can hold another record a moment later.
    type Element: Copy + PartialEq;

    /// Returns where the record `id` is now.
    fn find(&self, id: &ProcessId) -> Option<Self::Element>;
    /// Copies the link that is there, whoever's it is.
    fn copy(&self, at: Self::Element) -> Link;
    /// Changes the claim there if it is `from`. Returns whether it did.
    fn change_claim(&self, at: Self::Element, from: u64, to: u64) -> bool;
    /// Adds 1 to the references there.
    fn add_reference(&self, at: Self::Element);
    /// Takes 1 from the references there; returns what is left.
    fn drop_reference(&self, at: Self::Element) -> u64;
    /// Adds `by` to the holders there.
    fn count_in(&self, at: Self::Element, by: &ProcessId);
    /// Takes `by` from the holders there.
    fn count_out(&self, at: Self::Element, by: &ProcessId);
    /// Writes a death into the record there.
    fn fill(&self, at: Self::Element, fill: impl FnOnce(&mut Record));
    /// Marks the record there dead; returns the state that it had.
    fn end(&self, at: Self::Element) -> u64;
    /// Returns the creator that the record there names.
    fn creator(&self, at: Self::Element) -> ProcessId;

    /// Inserts a record unless there is one; the kernel's code where it refuses.
    ///
    /// # Errors
    /// [`EEXIST`], [`E2BIG`], or one that passes.
    fn insert_record(&self, id: &ProcessId, record: &Record) -> Result<(), i32>;
    /// Deletes a record.
    ///
    /// # Errors
    /// [`ENOENT`], or one that passes.
    fn delete_record(&self, id: &ProcessId) -> Result<(), i32>;
    /// Adds `id` to the set of those who have not been seen to exit.
    ///
    /// # Errors
    /// [`E2BIG`], or one that passes.
    fn insert_living(&self, id: &ProcessId) -> Result<(), i32>;
    /// Takes `id` out of that set.
    ///
    /// # Errors
    /// [`ENOENT`], or one that passes.
    fn delete_living(&self, id: &ProcessId) -> Result<(), i32>;

    /// Returns whether exits are claimed through the set of the living.
    fn claims_exits(&self) -> bool;
    /// Returns whether the processes that existed before are still being learnt.
    fn is_learning(&self) -> bool;
    /// Counts a process that has no record.
    fn count_lost_record(&self);
    /// Counts a deletion that the kernel refused.
    fn count_failed_delete(&self);
}

/// Repeats a call on a map that the kernel refuses for a reason that passes: the lock of its bucket
/// is held on this processor, or its holder has lost the processor.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n165>
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v7.2.13#n156>
///
/// # Errors
/// What the last of [`limits::MAP_TRIES`] was refused with.
#[inline(always)]
pub fn tried(mut call: impl FnMut() -> Result<(), i32>) -> Result<(), i32> {
    let mut result = call();
    for _ in 1..limits::MAP_TRIES {
        if !is_passing(result) {
            break;
        }
        result = call();
    }
    result
}

#[inline(always)]
fn is_passing(result: Result<(), i32>) -> bool {
    matches!(result, Err(code) if code != ENOENT && code != EEXIST && code != E2BIG)
}

/// Returns whether this deletion is the one that succeeded. That there was nothing to delete is one
/// thing; a refusal is another: what it leaves behind is counted, and found by userspace.
#[inline(always)]
pub fn deleted<R: Records>(store: &R, delete: impl FnMut() -> Result<(), i32>) -> bool {
    let result = tried(delete);
    if is_passing(result) {
        store.count_failed_delete();
    }
    result.is_ok()
}

/// Returns a consistent copy of the link of `id`: [`Lineage::link`].
#[inline(always)]
pub fn link<R: Records>(store: &R, id: &ProcessId) -> Option<Link> {
    let at = store.find(id)?;
    let link = store.copy(at);
    let again = store.find(id)?;
    (again == at).then_some(link)
}

/// Claims the record `id`: [`Lineage::claim`]. The element may hold another record by now; then the
/// claim is given back, which the pid in it tells from a claim of that record's own.
#[inline(always)]
pub fn claim<R: Records>(store: &R, id: &ProcessId, claim: u64) -> bool {
    let Some(at) = store.find(id) else {
        return false;
    };
    let claim = u64::from(id.pid) << 8 | claim;
    if !store.change_claim(at, FREE, claim) {
        return false;
    }
    if store.find(id) == Some(at) {
        return true;
    }
    store.change_claim(at, claim, FREE);
    false
}

/// Drops the reference of `by` on `id`, which the caller has: [`Lineage::unreference`].
#[inline(always)]
pub fn unreference<R: Records>(store: &R, id: &ProcessId, by: &ProcessId) -> Option<u64> {
    let at = store.find(id)?;
    // Before the count: whoever brings it to 1 finds the one that is left.
    if by != id {
        store.count_out(at, by);
    }
    Some(store.drop_reference(at))
}

/// Takes a reference for `by` on a record that cannot vanish: that of the current process, or any
/// while tracking starts. Returns whether there is one.
#[inline(always)]
pub fn hold<R: Records>(store: &R, id: &ProcessId, by: &ProcessId) -> bool {
    let Some(at) = store.find(id) else {
        return false;
    };
    store.add_reference(at);
    store.count_in(at, by);
    true
}

/// Inserts the record of a process that `creator` is creating at this moment, in its context and
/// before the child can run (I1). Returns whether the death of the child will be seen.
#[inline(always)]
pub fn insert_child<R: Records>(
    store: &R,
    creator: &ProcessId,
    process: &ProcessId,
    record: &mut Record,
) -> bool {
    // The creator is alive: it is in fork.
    let held = hold(store, creator, process);
    record.holds_creator = match held {
        true => HELD,
        // Its creator is older than tracking and will be learnt.
        false if store.is_learning() => CREATOR_DUE,
        // Created by the kernel, which has no record.
        false if creator.is_none() => NOT_HELD,
        false => CREATOR_LOST,
    };
    let inserted = insert(store, process, record);
    if inserted.is_err() && held {
        // It did not fit, or the pass that learns has seen the child already.
        store.unreference(creator, process);
    }
    !store.claims_exits() || matches!(inserted, Ok(()) | Err(EEXIST))
}

/// Inserts a record unless there is one; counts it when it does not fit. Where the living are kept
/// in a set of their own, a process that does not fit there gets no record either: its death would
/// not be seen.
///
/// # Errors
/// The kernel's code where it refuses.
#[inline(always)]
pub fn insert<R: Records>(store: &R, process: &ProcessId, record: &Record) -> Result<(), i32> {
    let mut inserted = tried(|| store.insert_record(process, record));
    if store.claims_exits()
        && inserted.is_ok()
        && let Err(code) = tried(|| store.insert_living(process))
    {
        deleted(store, || store.delete_record(process));
        inserted = Err(code);
    }
    if matches!(inserted, Err(code) if code != EEXIST) {
        store.count_lost_record();
    }
    inserted
}

/// Returns whether this caller is the one that handles the exit of `process` (I2). Where the kernel
/// says which thread is the last one, and one hook sees it, it is; elsewhere two threads may both
/// find that no other is left, or two hooks may see the same exit, and the delete that succeeds
/// decides.
#[inline(always)]
pub fn claim_exit<R: Records>(store: &R, process: &ProcessId) -> bool {
    !store.claims_exits() || deleted(store, || store.delete_living(process))
}

/// Writes how a process died into its record and marks it dead; returns its creator if it was alive
/// until now. `fill` sets the facts. The process is dying now and holds its own reference until it
/// is buried.
#[inline(always)]
pub fn mark_dead<R: Records>(
    store: &R,
    process: &ProcessId,
    fill: impl FnOnce(&mut Record),
) -> Option<ProcessId> {
    let at = store.find(process)?;
    store.fill(at, fill);
    (store.end(at) == LIVE).then(|| store.creator(at))
}

/// Lets go of the record of a process that is marked dead.
///
/// While tracking starts nothing is removed: somebody may be about to count a reference on this
/// very record. What is left over then is swept when everything has been learnt.
#[inline(always)]
pub fn bury<R: Records>(store: &R, process: &ProcessId) {
    if store.is_learning() {
        store.unreference(process, process);
    } else {
        rules::bury(store, process);
    }
}

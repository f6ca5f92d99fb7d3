//! The records: insert, mark dead, and the maps as the store that the rules run on.
//!
//! The race that decides the code: a deleted element is recycled at once, by another CPU, while
//! somebody still holds a pointer to it. So a pointer is written through only where the record
//! cannot vanish: the current process's own (it holds a reference on itself), one that it holds
//! (its creator's), or one that is claimed. Everybody else's record is copied, and the copy counts
//! only if the same element is still there under the same identity afterwards; an identity never
//! comes back.
//!
//! In the kernel:
//! - A deleted element is used again at once:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n1045>

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lifemon_ebpf::{
    CREATOR_DUE, CREATOR_LOST, DEAD, FREE, HELD, Holders, LIVE, NOT_HELD, ProcessId, Record,
    died_badly, limits,
    rules::{self, Lineage, Link},
};

use crate::{
    atomic::Counter,
    maps::{ALIVE, CLAIMS_EXITS, LINEAGE, ROOTS, host, is_learning, tree},
    task::Task,
};

/// What a map says of a key that it has.
pub(crate) const EEXIST: i32 = -17;
/// What a map says of a key that it does not have.
const ENOENT: i32 = -2;
/// What a map says when it is full.
const E2BIG: i32 = -7;

/// Repeats a call on a map that the kernel refuses for a reason that passes: the lock of its bucket
/// is held on this processor, or its holder has lost the processor.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v6.12.118#n165>
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/hashtab.c?h=v7.2.13#n156>
#[inline(always)]
pub(crate) fn tried(mut call: impl FnMut() -> Result<(), i32>) -> Result<(), i32> {
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
pub(crate) fn deleted(delete: impl FnMut() -> Result<(), i32>) -> bool {
    let result = tried(delete);
    if let (true, Some(host)) = (is_passing(result), host()) {
        host.failed_deletes.increment();
    }
    result.is_ok()
}

/// The lineage map as the store of the rules.
pub(crate) struct Map;

impl Lineage for Map {
    #[inline(always)]
    fn link(&self, id: &ProcessId) -> Option<Link> {
        let record = LINEAGE.get_ptr(id)?;
        // SAFETY: a map value stays mapped while a program runs; that it still is this record is
        // checked below, and the copy is thrown away if it is not.
        let link = unsafe {
            Link {
                creator: (&raw const (*record).creator).read_volatile(),
                references: (&raw const (*record).references).read_volatile(),
                holders: (&raw const (*record).holders).read_volatile(),
                state: (&raw const (*record).state).read_volatile(),
                holds_creator: (&raw const (*record).holds_creator).read_volatile(),
                elided: u64::from((&raw const (*record).elided).read_volatile()),
                elided_badly: u64::from((&raw const (*record).elided_badly).read_volatile()),
                died_badly: u64::from(died_badly((&raw const (*record).status).read_volatile())),
            }
        };
        let again = LINEAGE.get_ptr(id)?;
        (again as u64 == record as u64).then_some(link)
    }

    #[inline(always)]
    fn claim(&self, id: &ProcessId, claim: u64) -> bool {
        let Some(record) = LINEAGE.get_ptr_mut(id) else {
            return false;
        };
        // SAFETY: a map value stays mapped while a program runs. It may be another record by now;
        // then the claim is given back, which the pid in it tells from a claim of that record's
        // own.
        let word = unsafe { Counter::at(&raw mut (*record).claim) };
        let claim = claim_of(id, claim);
        if !word.replace(FREE, claim) {
            return false;
        }
        let again = LINEAGE.get_ptr(id);
        if again.is_some_and(|again| again as u64 == record as u64) {
            return true;
        }
        word.replace(claim, FREE);
        false
    }

    #[inline(always)]
    fn give_back(&self, id: &ProcessId) {
        if let Some(record) = LINEAGE.get_ptr_mut(id) {
            // SAFETY: the caller has claimed it, so it cannot vanish.
            unsafe { Counter::at(&raw mut (*record).claim) }.exchange(FREE);
        }
    }

    #[inline(always)]
    fn relink(&self, id: &ProcessId, link: &Link) {
        if let Some(record) = LINEAGE.get_ptr_mut(id) {
            // SAFETY: the caller has claimed it, so it cannot vanish. A reader that sees the
            // creator half written finds no such record and looks again.
            unsafe {
                (*record).creator = link.creator;
                (*record).holds_creator = link.holds_creator;
                (*record).elided = link.elided as u32;
                (*record).elided_badly = link.elided_badly as u32;
            }
        }
    }

    #[inline(always)]
    fn unreference(&self, id: &ProcessId, by: &ProcessId) -> Option<u64> {
        let record = LINEAGE.get_ptr_mut(id)?;
        // SAFETY: the caller holds the reference that it drops, so until here it cannot vanish.
        let references = unsafe {
            // Before the count: whoever brings it to 1 finds the one that is left.
            if by != id {
                count_out(record, by);
            }
            Counter::at(&raw mut (*record).references)
        };
        Some(references.decrement())
    }

    #[inline(always)]
    fn pass_on(&self, id: &ProcessId, from: &ProcessId, to: &ProcessId) {
        if let Some(record) = LINEAGE.get_ptr_mut(id) {
            // SAFETY: `to` holds it and is claimed by the caller, so neither can vanish.
            unsafe {
                count_in(record, to);
                count_out(record, from);
            }
        }
    }

    #[inline(always)]
    fn remove(&self, id: &ProcessId) -> bool {
        deleted(|| LINEAGE.remove(id))
    }

    #[inline(always)]
    fn is_root(&self, id: &ProcessId) -> bool {
        ROOTS.get_ptr(id).is_some()
    }

    #[inline(always)]
    fn overrun(&self) {
        if let Some(host) = host() {
            host.release_overruns.increment();
        }
    }
}

/// Returns the word that claims `id`.
#[inline(always)]
fn claim_of(id: &ProcessId, claim: u64) -> u64 {
    u64::from(id.pid) << 8 | claim
}

/// Makes `record` a new one of `task`, that does not hold its creator yet. Field by field: a whole
/// record would go over the stack.
#[inline(always)]
pub(crate) fn describe(record: &mut Record, task: Task, creator: ProcessId) {
    record.creator = creator;
    record.references = 1;
    record.holders = Holders::default();
    record.state = LIVE;
    record.claim = FREE;
    record.exit_ns = 0;
    record.cgroup_id = task.cgroup_id();
    record.sender = ProcessId::NONE;
    record.sender_name = [0; 16];
    record.name = task.name();
    record.status = 0;
    record.exit_flags = 0;
    record.origin = 0;
    record.holds_creator = NOT_HELD;
    record.elided = 0;
    record.elided_badly = 0;
    record.session = task.session();
    record.exec_ns = 0;
    record.uid = task.uid();
    record.ns_pid = task.namespace_pid();
}

/// Inserts the record of a process that `creator` is creating at this moment, in its context and
/// before the child can run (I1). Whether the death of the child will be seen.
#[inline(never)]
pub(crate) fn insert_child(creator: &ProcessId, process: &ProcessId, record: &mut Record) -> bool {
    // The creator is alive: it is in fork.
    let held = hold(creator, process);
    record.holds_creator = match held {
        true => HELD,
        // Its creator is older than tracking and will be learnt.
        false if is_learning() => CREATOR_DUE,
        // Created by the kernel, which has no record.
        false if creator.is_none() => NOT_HELD,
        false => CREATOR_LOST,
    };
    let inserted = insert(process, record);
    if inserted.is_err() && held {
        // It did not fit, or the pass that learns has seen the child already.
        Map.unreference(creator, process);
    }
    CLAIMS_EXITS.load() == 0 || matches!(inserted, Ok(()) | Err(EEXIST))
}

/// Inserts a record unless there is one; counts it when it does not fit. Where the living are kept
/// in a set of their own, a process that does not fit there gets no record either: its death would
/// not be seen.
#[inline(always)]
pub(crate) fn insert(process: &ProcessId, record: &Record) -> Result<(), i32> {
    let mut inserted = tried(|| LINEAGE.insert(process, record, u64::from(BPF_NOEXIST)));
    if CLAIMS_EXITS.load() != 0
        && inserted.is_ok()
        && let Err(code) = tried(|| ALIVE.insert(process, 1, u64::from(BPF_ANY)))
    {
        deleted(|| LINEAGE.remove(process));
        inserted = Err(code);
    }
    let failed = matches!(inserted, Err(code) if code != EEXIST);
    if let (true, Some(all)) = (failed, tree(0)) {
        all.lost_records.increment();
    }
    inserted
}

/// Takes a reference for `by` on a record that cannot vanish: that of the current process, or any
/// while tracking starts. Whether there is one.
#[inline(always)]
pub(crate) fn hold(creator: &ProcessId, by: &ProcessId) -> bool {
    let Some(record) = LINEAGE.get_ptr_mut(creator) else {
        return false;
    };
    // SAFETY: the caller promises that it cannot vanish.
    unsafe {
        Counter::at(&raw mut (*record).references).increment();
        count_in(record, by);
    }
    true
}

/// Adds a holder.
///
/// # Safety
/// The record cannot vanish.
#[inline(always)]
unsafe fn count_in(record: *mut Record, by: &ProcessId) {
    // SAFETY: passed on to the caller.
    unsafe {
        Counter::at(&raw mut (*record).holders.pids).add(u64::from(by.pid));
        Counter::at(&raw mut (*record).holders.starts).add(by.start_ns);
    }
}

/// Takes a holder away.
///
/// # Safety
/// The record cannot vanish.
#[inline(always)]
unsafe fn count_out(record: *mut Record, by: &ProcessId) {
    // SAFETY: passed on to the caller.
    unsafe {
        Counter::at(&raw mut (*record).holders.pids).add(u64::from(by.pid).wrapping_neg());
        Counter::at(&raw mut (*record).holders.starts).add(by.start_ns.wrapping_neg());
    }
}

/// Returns whether this caller is the one that handles the exit of `process` (I2). Where the kernel
/// says which thread is the last one, and one hook sees it, it is; elsewhere two threads may both
/// find that no other is left, or two hooks may see the same exit, and the delete that succeeds
/// decides.
#[inline(always)]
pub(crate) fn claim_exit(process: &ProcessId) -> bool {
    CLAIMS_EXITS.load() == 0 || deleted(|| ALIVE.remove(process))
}

/// Writes how a process died into its record and marks it dead; its creator if it was alive until
/// now. `fill` sets the facts.
#[inline(always)]
pub(crate) fn mark_dead(process: &ProcessId, fill: impl FnOnce(&mut Record)) -> Option<ProcessId> {
    let record = LINEAGE.get_ptr_mut(process)?;
    // SAFETY: the process is dying now and holds its own reference until `bury`.
    unsafe {
        fill(&mut *record);
        if Counter::at(&raw mut (*record).state).exchange(DEAD) != LIVE {
            return None;
        }
        Some((*record).creator)
    }
}

/// Returns how many references the record of this process has: its own, and one of each record that
/// it created. The caller holds one.
#[inline(always)]
pub(crate) fn references(process: &ProcessId) -> u64 {
    let record = LINEAGE.get_ptr(process);
    // SAFETY: a map value stays mapped while a program runs, and this one cannot vanish.
    record.map_or(0, |record| unsafe {
        (&raw const (*record).references).read_volatile()
    })
}

/// Lets go of the record of a process that is marked dead.
///
/// While tracking starts nothing is removed: somebody may be about to count a reference on this
/// very record. What is left over then is swept when everything has been learnt.
#[inline(never)]
pub(crate) fn bury(process: &ProcessId) {
    if is_learning() {
        Map.unreference(process, process);
    } else {
        rules::bury(&Map, process);
    }
}

//! The lineage map as the store of the rules, and what a record is made of.
//!
//! What may be written through a pointer, and what a copy is worth, is said in
//! [`lifemon_ebpf::records`].

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lifemon_ebpf::{
    DEAD, FREE, Holders, LIVE, NOT_HELD, ProcessId, Record, died_badly,
    records::{self, Records},
    rules::{Lineage, Link},
};

use crate::{
    atomic::Counter,
    maps::{ALIVE, CLAIMS_EXITS, LINEAGE, ROOTS, host, is_learning, tree},
    task::Task,
};

/// The maps as the store of all rules.
pub(crate) struct Map;

/// A place in the lineage map. It stays mapped while a program runs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Place(*mut Record);

/// Defines a method of [`Place`] for each counter of a record.
macro_rules! counters {
    ($($name:ident: $($field:ident).+;)*) => {
        impl Place {
            $(
                #[inline(always)]
                fn $name<'a>(self) -> &'a Counter {
                    // SAFETY: a map value stays mapped while a program runs. Whether it still is
                    // the record that was looked for is what the rules see to.
                    unsafe { Counter::at(&raw mut (*self.0).$($field).+) }
                }
            )*
        }
    };
}

counters! {
    references: references;
    claim: claim;
    holders_pids: holders.pids;
    holders_starts: holders.starts;
    state: state;
}

impl Lineage for Map {
    #[inline(always)]
    fn link(&self, id: &ProcessId) -> Option<Link> {
        records::link(self, id)
    }

    #[inline(always)]
    fn claim(&self, id: &ProcessId, claim: u64) -> bool {
        records::claim(self, id, claim)
    }

    #[inline(always)]
    fn give_back(&self, id: &ProcessId) {
        if let Some(record) = self.find(id) {
            // The caller has claimed it, so it cannot vanish.
            record.claim().exchange(FREE);
        }
    }

    #[inline(always)]
    fn relink(&self, id: &ProcessId, link: &Link) {
        if let Some(Place(record)) = self.find(id) {
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
        records::unreference(self, id, by)
    }

    #[inline(always)]
    fn pass_on(&self, id: &ProcessId, from: &ProcessId, to: &ProcessId) {
        if let Some(record) = self.find(id) {
            // `to` holds it and is claimed by the caller, so neither can vanish.
            self.count_in(record, to);
            self.count_out(record, from);
        }
    }

    #[inline(always)]
    fn remove(&self, id: &ProcessId) -> bool {
        records::deleted(self, || self.delete_record(id))
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

impl Records for Map {
    type Element = Place;

    #[inline(always)]
    fn find(&self, id: &ProcessId) -> Option<Place> {
        LINEAGE.get_ptr_mut(id).map(Place)
    }

    #[inline(always)]
    fn copy(&self, Place(record): Place) -> Link {
        // SAFETY: a map value stays mapped while a program runs; the caller throws the copy away if
        // it is of another record by then.
        unsafe {
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
        }
    }

    #[inline(always)]
    fn change_claim(&self, at: Place, from: u64, to: u64) -> bool {
        at.claim().replace(from, to)
    }

    #[inline(always)]
    fn add_reference(&self, at: Place) {
        at.references().increment();
    }

    #[inline(always)]
    fn drop_reference(&self, at: Place) -> u64 {
        at.references().decrement()
    }

    #[inline(always)]
    fn count_in(&self, at: Place, by: &ProcessId) {
        at.holders_pids().add(u64::from(by.pid));
        at.holders_starts().add(by.start_ns);
    }

    #[inline(always)]
    fn count_out(&self, at: Place, by: &ProcessId) {
        at.holders_pids().add(u64::from(by.pid).wrapping_neg());
        at.holders_starts().add(by.start_ns.wrapping_neg());
    }

    #[inline(always)]
    fn fill(&self, Place(record): Place, fill: impl FnOnce(&mut Record)) {
        // SAFETY: that of a process that is dying now, or has died unseen: it holds its own
        // reference, so it cannot vanish, and nobody else writes these fields.
        fill(unsafe { &mut *record });
    }

    #[inline(always)]
    fn end(&self, at: Place) -> u64 {
        at.state().exchange(DEAD)
    }

    #[inline(always)]
    fn creator(&self, Place(record): Place) -> ProcessId {
        // SAFETY: a map value stays mapped while a program runs, and this one cannot vanish.
        unsafe { (*record).creator }
    }

    #[inline(always)]
    fn insert_record(&self, id: &ProcessId, record: &Record) -> Result<(), i32> {
        LINEAGE.insert(id, record, u64::from(BPF_NOEXIST))
    }

    #[inline(always)]
    fn delete_record(&self, id: &ProcessId) -> Result<(), i32> {
        LINEAGE.remove(id)
    }

    #[inline(always)]
    fn insert_living(&self, id: &ProcessId) -> Result<(), i32> {
        ALIVE.insert(id, 1, u64::from(BPF_ANY))
    }

    #[inline(always)]
    fn delete_living(&self, id: &ProcessId) -> Result<(), i32> {
        ALIVE.remove(id)
    }

    #[inline(always)]
    fn claims_exits(&self) -> bool {
        CLAIMS_EXITS.load() != 0
    }

    #[inline(always)]
    fn is_learning(&self) -> bool {
        is_learning()
    }

    #[inline(always)]
    fn count_lost_record(&self) {
        if let Some(all) = tree(0) {
            all.lost_records.increment();
        }
    }

    #[inline(always)]
    fn count_failed_delete(&self) {
        if let Some(host) = host() {
            host.failed_deletes.increment();
        }
    }
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

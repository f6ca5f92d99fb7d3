//! The kernel half on the model: each call of the store is one step, the rules are the real ones.

use std::sync::atomic::Ordering;

use lifemon_ebpf::lifecycle::{self, Lifecycle};
use lifemon_ebpf::membership::{self, Trees, Visited, Wanted};
use lifemon_ebpf::records::{self, Records};
use lifemon_ebpf::rules::{Lineage, Link};
use lifemon_ebpf::{
    DEAD, EVENT_EXIT, EVENT_FORK, Event, FREE, HELD, LIVE, MemberKey, Membership, ProcessId,
    Record, TAKEN, is_meant,
};

use super::elements::Place;
use super::world::{Lost, World};

/// A passing refusal: the lock of the bucket is held.
pub(super) const EBUSY: i32 = -16;

/// A run of a program of the kernel half.
pub(super) struct Hook<'a> {
    world: &'a World,
    run: u64,
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        // A failure ends all of it.
        if !std::thread::panicking() {
            self.world.end_run(self.run);
        }
    }
}

impl<'a> Hook<'a> {
    pub(super) fn begin(world: &'a World) -> Self {
        let run = world.step(|state| {
            state.last_run += 1;
            state.runs.insert(state.last_run);
            state.last_run
        });
        Self { world, run }
    }

    /// Does what the hook for forks does.
    pub(super) fn forked(&self, creator: ProcessId, child: ProcessId) {
        self.world.tree(0).forks.fetch_add(1, Ordering::SeqCst);
        let mut record = Record {
            creator,
            references: 1,
            state: LIVE,
            claim: FREE,
            ..Record::default()
        };
        let mut event = Event {
            kind: EVENT_FORK,
            process: child,
            creator,
            ..Event::default()
        };
        lifecycle::born(self, &creator, &child, &mut record, &mut event);
    }

    /// Does what the hook for exits does.
    pub(super) fn exited(&self, process: ProcessId) {
        if !records::claim_exit(self, &process) {
            return;
        }
        let mut event = Event {
            kind: EVENT_EXIT,
            process,
            ..Event::default()
        };
        self.world.tree(0).exits.fetch_add(1, Ordering::SeqCst);
        lifecycle::died(
            self,
            &process,
            &mut event,
            |record, _| record.exit_ns = 1,
            |event, creator| event.creator = creator,
        );
    }

    /// Does what the pass that labels does with one process.
    pub(super) fn label(&self, process: ProcessId, wanted: &Wanted) -> Visited {
        let is_alive = || self.world.step(|state| state.is_alive(process));
        membership::label(self, &process, wanted, is_alive, |at| {
            membership::look(self, at, wanted)
        })
    }

    /// Does what the closer does with the process that returns to user code. Returns whether it is
    /// ended.
    pub(super) fn closes(&self, process: ProcessId) -> bool {
        self.world.yield_now();
        let layers = self.world.host.condemned_layers.load(Ordering::SeqCst);
        let tree = membership::condemned(self, &process, layers);
        tree.is_some_and(|tree| is_meant(self.condemnation(tree), 0))
    }

    /// Does what the program does that settles a death that no hook saw.
    pub(super) fn settle(&self, process: ProcessId) -> bool {
        lifecycle::settle(self, &process, |record| record.exit_ns = 1)
    }

    fn change(&self, id: &ProcessId, change: impl FnOnce(&mut Record)) {
        self.world.step(|state| {
            if let Some(place) = state.lineage.find(id) {
                change(state.lineage.at(place));
            }
        });
    }
}

impl Lineage for Hook<'_> {
    fn link(&self, id: &ProcessId) -> Option<Link> {
        records::link(self, id)
    }

    fn claim(&self, id: &ProcessId, claim: u64) -> bool {
        records::claim(self, id, claim)
    }

    fn give_back(&self, id: &ProcessId) {
        self.change(id, |record| {
            assert!(record.claim != FREE, "gave back what it has not claimed");
            record.claim = FREE;
        });
    }

    fn relink(&self, id: &ProcessId, link: &Link) {
        self.change(id, |record| {
            assert!(record.claim != FREE, "relinked without a claim");
            record.creator = link.creator;
            record.holds_creator = link.holds_creator;
            record.elided = link.elided as u32;
            record.elided_badly = link.elided_badly as u32;
        });
    }

    fn unreference(&self, id: &ProcessId, by: &ProcessId) -> Option<u64> {
        records::unreference(self, id, by)
    }

    fn pass_on(&self, id: &ProcessId, from: &ProcessId, to: &ProcessId) {
        if let Some(at) = self.find(id) {
            self.count_in(at, to);
            self.count_out(at, from);
        }
    }

    fn remove(&self, id: &ProcessId) -> bool {
        records::deleted(self, || self.delete_record(id))
    }

    fn is_root(&self, id: &ProcessId) -> bool {
        self.world.step(|state| state.roots.contains(id))
    }

    fn overrun(&self) {
        self.world.yield_now();
        self.world
            .host
            .release_overruns
            .fetch_add(1, Ordering::SeqCst);
    }
}

impl Records for Hook<'_> {
    type Element = Place;

    fn find(&self, id: &ProcessId) -> Option<Place> {
        self.world.step(|state| state.lineage.find(id))
    }

    fn copy(&self, at: Place) -> Link {
        self.world.step(|state| {
            let record = state.lineage.at(at);
            Link {
                creator: record.creator,
                references: record.references,
                holders: record.holders,
                state: record.state,
                holds_creator: record.holds_creator,
                elided: u64::from(record.elided),
                elided_badly: u64::from(record.elided_badly),
                died_badly: 0,
            }
        })
    }

    fn change_claim(&self, at: Place, from: u64, to: u64) -> bool {
        self.world.step(|state| {
            let record = state.lineage.at(at);
            let is_from = record.claim == from;
            if is_from {
                record.claim = to;
            }
            is_from
        })
    }

    fn add_reference(&self, at: Place) {
        self.world
            .step(|state| state.lineage.own(at).references += 1);
    }

    fn drop_reference(&self, at: Place) -> u64 {
        self.world.step(|state| {
            let record = state.lineage.own(at);
            record.references = record.references.checked_sub(1).expect("one is held");
            record.references
        })
    }

    fn count_in(&self, at: Place, by: &ProcessId) {
        self.world.step(|state| {
            let holders = &mut state.lineage.own(at).holders;
            holders.pids = holders.pids.wrapping_add(u64::from(by.pid));
            holders.starts = holders.starts.wrapping_add(by.start_ns);
        });
    }

    fn count_out(&self, at: Place, by: &ProcessId) {
        self.world.step(|state| {
            let holders = &mut state.lineage.own(at).holders;
            holders.pids = holders.pids.wrapping_sub(u64::from(by.pid));
            holders.starts = holders.starts.wrapping_sub(by.start_ns);
        });
    }

    fn fill(&self, at: Place, fill: impl FnOnce(&mut Record)) {
        self.world.step(|state| fill(state.lineage.own(at)));
    }

    fn end(&self, at: Place) -> u64 {
        self.world
            .step(|state| std::mem::replace(&mut state.lineage.own(at).state, DEAD))
    }

    fn creator(&self, at: Place) -> ProcessId {
        self.world.step(|state| state.lineage.own(at).creator)
    }

    fn insert_record(&self, id: &ProcessId, record: &Record) -> Result<(), i32> {
        let is_refused = self.world.is_refused();
        self.world.step(|state| {
            let mut insert = || state.lineage.insert(*id, *record);
            let inserted = if is_refused { Err(EBUSY) } else { insert() };
            state.note(*id, Lost::Record, inserted)
        })
    }

    fn delete_record(&self, id: &ProcessId) -> Result<(), i32> {
        if self.world.is_refused() {
            return Err(EBUSY);
        }
        self.world.step(|state| {
            if let Some(record) = state.lineage.get(id) {
                let held = state
                    .lineage
                    .iter()
                    .filter(|(_, below)| below.holds_creator == HELD && below.creator == *id);
                let is_dead = record.state == DEAD && record.claim & 0xff == TAKEN;
                // One that is spliced out is held by the record below alone, until that is linked
                // anew; one that never was is not held at all.
                assert!(
                    held.count() as u64 == record.references
                        || (!is_dead && state.measures.claims_exits),
                    "removed a record that is needed: {id:?} {record:?}"
                );
            }
            state.lineage.remove(id)
        })
    }

    fn insert_living(&self, id: &ProcessId) -> Result<(), i32> {
        let is_refused = self.world.is_refused();
        self.world.step(|state| {
            let mut insert = || {
                state.living.insert(*id);
                Ok(())
            };
            let inserted = if is_refused { Err(EBUSY) } else { insert() };
            state.note(*id, Lost::Record, inserted)
        })
    }

    fn delete_living(&self, id: &ProcessId) -> Result<(), i32> {
        if self.world.is_refused() {
            return Err(EBUSY);
        }
        let was_there = self.world.step(|state| state.living.remove(id));
        was_there.then_some(()).ok_or(records::ENOENT)
    }

    fn claims_exits(&self) -> bool {
        self.world.peek(|state| state.measures.claims_exits)
    }

    fn is_learning(&self) -> bool {
        false
    }

    fn count_lost_record(&self) {
        self.world
            .tree(0)
            .lost_records
            .fetch_add(1, Ordering::SeqCst);
    }

    fn count_failed_delete(&self) {
        self.world.yield_now();
        self.world
            .host
            .failed_deletes
            .fetch_add(1, Ordering::SeqCst);
    }
}

impl Trees for Hook<'_> {
    type Tree = u32;
    type Entry = Place;

    fn layers(&self) -> u64 {
        self.world.yield_now();
        self.world.host.layers.load(Ordering::SeqCst)
    }

    fn tree(&self, slot: u32) -> Option<u32> {
        Some(slot)
    }

    fn generation(&self, tree: u32) -> u32 {
        self.world.tree(tree).generation.load(Ordering::SeqCst)
    }

    fn condemnation(&self, tree: u32) -> u64 {
        self.world.tree(tree).condemned.load(Ordering::SeqCst)
    }

    fn count_live(&self, tree: u32) {
        self.world.tree(tree).live.fetch_add(1, Ordering::SeqCst);
    }

    fn count_dead(&self, tree: u32) {
        self.world.tree(tree).live.fetch_sub(1, Ordering::SeqCst);
    }

    fn count_fork(&self, tree: u32) {
        self.world.tree(tree).forks.fetch_add(1, Ordering::SeqCst);
    }

    fn count_exit(&self, tree: u32) {
        self.world.tree(tree).exits.fetch_add(1, Ordering::SeqCst);
    }

    fn count_lost_member(&self, tree: u32) {
        self.world
            .tree(tree)
            .lost_members
            .fetch_add(1, Ordering::SeqCst);
    }

    fn find_member(&self, key: &MemberKey) -> Option<Place> {
        self.world.step(|state| state.members.find(key))
    }

    fn copy_member(&self, at: Place) -> Membership {
        self.world.step(|state| *state.members.at(at))
    }

    fn insert_member(&self, key: &MemberKey, membership: Membership) -> Result<(), i32> {
        let is_refused = self.world.is_refused();
        self.world.step(|state| {
            let mut insert = || state.members.insert(*key, membership);
            let inserted = if is_refused { Err(EBUSY) } else { insert() };
            state.note(key.process, Lost::Member, inserted)
        })
    }

    fn delete_member(&self, key: &MemberKey) -> Result<(), i32> {
        if self.world.is_refused() {
            return Err(EBUSY);
        }
        self.world.step(|state| state.members.remove(key))
    }
}

impl Lifecycle for Hook<'_> {
    type Event = Event;

    fn emit(&self, slot: u32, _tree: u32, event: &mut Event, _urgent: bool) {
        self.world.step(|state| {
            if let Some(ring) = state.rings.get_mut(&slot) {
                ring.push(*event);
            }
        });
    }

    fn log(&self, _process: &ProcessId, _event: &mut Event) {}
}

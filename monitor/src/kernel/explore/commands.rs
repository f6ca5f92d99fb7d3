//! The commands of the model: userspace as it is, on the maps of the model.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifemon_ebpf::membership::{Visited, Wanted};
use lifemon_ebpf::{CONDEMNED, LIVE, MemberKey, Membership, Pass, ProcessId, Record, rules};

use super::super::Error;
use super::super::heal::{is_settling_due, is_sweep_due};
use super::super::label::{Tree, label};
use super::super::scene::{Found, Pids, Scene};
use super::super::seat::{self, Seat};
use super::super::slots::{Rank, Slots};
use super::super::snapshot::{Snapshot, complete};
use super::desk::{BUCKETS, Desk};
use super::hooks::Hook;
use super::world::World;

/// The layer of a tree that is alone.
const LAYER: u32 = 0;

/// Passes of a kill, at most.
const PASSES: u32 = 6;

/// A command, and the process that it is.
pub(super) struct Command {
    world: Arc<World>,
    process: ProcessId,
    slots: Slots<Desk>,
}

impl Command {
    /// Returns the command that this process is, which is killed after so many steps, if any.
    pub(super) fn new(world: &Arc<World>, process: ProcessId, killed_after: Option<u32>) -> Self {
        let desk = Desk::new(world, killed_after);
        Self {
            world: Arc::clone(world),
            process,
            slots: Slots::new(desk),
        }
    }

    /// Watches a tree until `body` is done.
    pub(super) fn watch(&mut self, root: ProcessId, body: impl FnOnce(&mut Self, &Seat)) {
        if let Some(seat) = self.sit_down(root, Rank::Watcher) {
            body(self, &seat);
            self.give_back(&seat);
        }
    }

    /// Kills a tree, in so many passes at most; who is left then dies by itself.
    pub(super) fn kill(&mut self, root: ProcessId) {
        if let Some(seat) = self.sit_down(root, Rank::Kill) {
            // A map that cannot be read any more is that of a command that was killed.
            let _ = self.kill_members(&seat, root);
            self.give_back(&seat);
        }
    }

    /// Kills a tree but for one of its members and what that creates from then on.
    pub(super) fn kill_but_one(&mut self, root: ProcessId) {
        let Some(seat) = self.sit_down(root, Rank::Kill) else {
            return;
        };
        let members = self.slots.members_of(seat.membership).unwrap_or_default();
        let spared: HashSet<_> = members
            .into_iter()
            .filter(|id| *id != root)
            .take(1)
            .collect();
        for id in &spared {
            self.world.peek(|state| state.spared.insert(*id));
            let key = MemberKey::new(*id, seat.layer);
            self.slots.spare(seat.membership.slot, &key).unwrap();
        }
        let world = Arc::clone(&self.world);
        let lock = world.lock.lock().unwrap();
        let tree = Tree {
            membership: seat.membership,
            layer: seat.layer,
            roots: &[root],
            spared: &spared,
        };
        label(self, &tree).unwrap();
        drop(lock);
        self.kill_members(&seat, root).unwrap();
        self.give_back(&seat);
    }

    /// Kills a tree although its slot may be given to another one meanwhile.
    pub(super) fn kill_without_right(&mut self, root: ProcessId) {
        if let Some(seat) = self.sit_down(root, Rank::Kill) {
            self.kill_members(&seat, root).unwrap();
            let _lock = self.world.lock.lock().unwrap();
            if self.slots.is_own(seat.membership) {
                self.slots.give_back(seat.membership.slot).unwrap();
            }
        }
    }

    /// Takes a slot in which nobody is a member yet.
    pub(super) fn take_slot(&self, root: ProcessId) -> Membership {
        let slot = self.slots.free(Rank::Watcher).unwrap();
        let generation = self.slots.take(slot, LAYER, root, self.process);
        Membership { slot, generation }
    }

    /// Makes a process a member of such a tree, as labelling does it.
    pub(super) fn add(&self, process: ProcessId, tree: Membership) {
        let is_live = || self.has_live_record(&process);
        self.slots.add(&process, LAYER, tree, is_live).unwrap();
    }

    /// Takes the slots of all others, as who cannot see that they live.
    pub(super) fn steal(&mut self) {
        let _lock = self.world.lock.lock().unwrap();
        self.slots.reclaim(|_| Ok(false)).unwrap();
    }

    /// Takes the skipped forks for learnt, as the passes do that learn again, although one who was
    /// not learnt has died in between.
    pub(super) fn forget_misses(&mut self) {
        let _lock = self.world.lock.lock().unwrap();
        self.world.step(|state| {
            let all_are_learnt = state
                .tasks
                .values()
                .all(|task| state.lineage.get(&task.id).is_some());
            if all_are_learnt {
                state.missed_forks = 0;
            }
        });
    }

    fn try_step(&self) -> Result<&World, Error> {
        self.slots.maps().try_step().map_err(Error::Map)
    }

    /// Takes a slot and labels the tree; nothing where the root has gone, or this was killed.
    fn sit_down(&mut self, root: ProcessId, rank: Rank) -> Option<Seat> {
        let world = Arc::clone(&self.world);
        let lock = world.lock.lock().unwrap();
        let owner = self.process;
        let taken = seat::take(self, rank, &[root], |_| Ok(owner), ());
        if let Ok(seat) = &taken
            && seat.unlabelled.is_complete()
            && !self.slots.maps().is_dead()
        {
            world.tree_is_labelled(seat.membership, seat.layer, root);
        }
        drop(lock);
        match taken {
            Ok(seat) => Some(seat),
            Err(Error::NoProcess(_)) => None,
            Err(_) if self.slots.maps().is_dead() => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn kill_members(&mut self, seat: &Seat, root: ProcessId) -> Result<(), Error> {
        let world = Arc::clone(&self.world);
        let lock = world.lock.lock().unwrap();
        self.slots.condemn(seat.membership.slot, CONDEMNED);
        drop(lock);
        self.try_step()?.step(|state| state.is_closed = true);
        for _ in 0..PASSES {
            for id in self.slots.members_of(seat.membership)? {
                self.strike(id)?;
            }
            let failed = &world.host.failed_deletes;
            if failed.load(Ordering::SeqCst) > 0 {
                let is_live = |id: &ProcessId| self.has_live_record(id);
                self.slots.settle(seat.membership, is_live)?;
            }
            if self.slots.counters_of(seat.membership).live == 0 {
                if seat.unlabelled.is_complete() {
                    world.check_extinct(seat.membership, root);
                }
                break;
            }
        }
        Ok(())
    }

    fn give_back(&mut self, seat: &Seat) {
        let world = Arc::clone(&self.world);
        let _lock = world.lock.lock().unwrap();
        if self.slots.maps().is_dead() {
            return;
        }
        // Nobody else takes it away while this lives.
        assert!(self.slots.is_own(seat.membership), "a slot was stolen");
        world.check_members(seat.membership);
        let given = self.slots.give_back(seat.membership.slot);
        assert!(given.is_ok() || self.slots.maps().is_dead(), "{given:?}");
    }

    /// Does what the next command does: gives back the slots of the dead, settles every death that
    /// no hook saw, and removes what nobody needs any more.
    pub(super) fn heal(&mut self) {
        let world = Arc::clone(&self.world);
        let _lock = world.lock.lock().unwrap();
        seat::reclaim(self).unwrap();
        let counted = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let missed_exits = world.peek(|state| state.missed_exits);
        let (failed, left) = (&world.host.failed_deletes, &world.host.release_overruns);
        let records = || {
            world.peek(|state| {
                let all = state.lineage.iter();
                all.map(|(id, record)| (*id, *record)).collect::<Vec<_>>()
            })
        };
        let is_over = |id: &ProcessId| world.peek(|state| state.task(*id).is_none());
        let over = records().into_iter();
        let over = over.filter(|(id, record)| record.state == LIVE && is_over(id));
        let is_due = is_settling_due(missed_exits, counted(failed));
        for (id, _) in over.filter(|_| is_due) {
            Hook::begin(&world).settle(id);
        }
        let is_due = is_sweep_due(counted(left), counted(failed));
        let mut before = usize::MAX;
        while is_due && records().len() < before {
            before = records().len();
            for (id, _) in records() {
                rules::sweep(&Hook::begin(&world), &id);
            }
        }
    }

    /// Sends SIGKILL to one member, or to nobody.
    pub(super) fn strike(&self, id: ProcessId) -> Result<(), Error> {
        let world = self.try_step()?;
        let open = || {
            let found = world.step(|state| state.tasks.get(&id.pid).map(|task| task.id));
            found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
        };
        let send = |opened: &ProcessId| {
            world.step(|state| {
                assert!(*opened == id, "{opened:?} was hit instead of {id:?}");
                assert!(!state.spared.contains(&id), "{id:?} was to be spared");
                let Some(task) = state.task(*opened) else {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                };
                task.is_killed = true;
                Ok(())
            })
        };
        super::super::sandwich::send(open, || self.has_live_record(&id), send).map(drop)
    }
}

impl Scene for Command {
    type Maps = Desk;

    fn slots(&self) -> &Slots<Desk> {
        &self.slots
    }

    fn record(&self, id: &ProcessId) -> Result<Option<Record>, Error> {
        Ok(self.try_step()?.step(|state| state.lineage.get(id)))
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut found = Vec::new();
        for bucket in 0..BUCKETS {
            self.try_step()?.step(|state| {
                let all = state.lineage.iter();
                let here = all.filter(|(id, _)| id.pid % BUCKETS == bucket);
                found.extend(here.map(|(id, record)| (*id, *record)));
            });
        }
        let read = |id: &ProcessId| Ok(self.world.step(|state| state.lineage.get(id)));
        let (records, unsettled) = complete(found, read).map_err(Error::Map)?;
        Ok(Snapshot {
            records,
            unsettled,
            since_ns: 1,
            lost_records: self.slots.counters(0).lost_records,
            missed_forks: self.world.step(|state| state.missed_forks),
            is_pinned: true,
        })
    }

    fn run_label_pass(&mut self, wanted: &Pass) -> Result<Found, Error> {
        let wanted = Wanted {
            root: wanted.root,
            layer: wanted.layer,
            membership: Membership {
                slot: wanted.slot,
                generation: wanted.generation,
            },
        };
        let mut found = Found::default();
        let mut position = 0;
        loop {
            // The kernel goes on at the next pid that is in use then.
            let next = self.try_step()?.step(|state| {
                let mut next = state.tasks.range(position + 1..);
                next.next().map(|(_, task)| task.id)
            });
            let Some(process) = next else {
                return Ok(found);
            };
            position = process.pid;
            match Hook::begin(&self.world).label(process, &wanted) {
                Visited::Settled | Visited::Full => {}
                Visited::Inserted => found.inserted += 1,
                Visited::Unsettled => found.unsettled += 1,
                Visited::Unrecorded => found.unrecorded += 1,
                Visited::Conflict => found.conflicts += 1,
            }
        }
    }

    fn tidy(&self) -> Result<(), Error> {
        Ok(())
    }

    fn is_watching(&self, owner: &ProcessId) -> Result<bool, Error> {
        Ok(self.record(owner)?.map_or_else(
            || self.world.step(|state| state.task(*owner).is_some()),
            |record| record.state == LIVE,
        ))
    }

    fn pids(&self) -> Option<Pids> {
        /// Steps of a fork at least, each of which takes a nanosecond.
        const STEPS: u64 = 20;
        self.world.step(|state| {
            let used = state.tasks.len() + state.taken.len();
            let free = u64::from(state.measures.pids).saturating_sub(used as u64);
            Some(Pids {
                last: state.last_pid,
                turn: Duration::from_nanos(STEPS * free),
            })
        })
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.world.peek(|state| state.now_ns))
    }

    /// Puts the clock forward, further than on a host: so there are fewer rounds.
    fn pause(&self, time: Duration) {
        let pause_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) * 64;
        self.world.step(|state| state.now_ns += pause_ns);
    }
}

//! The commands of the model: userspace as it is, on the maps of the model. A command can be killed
//! at any step.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifemon_ebpf::membership::{Visited, Wanted};
use lifemon_ebpf::{CONDEMNED, LIVE, MemberKey, Membership, Pass, ProcessId, Record, rules};

use super::super::Error;
use super::super::heal::Due;
use super::super::label::{Found, Pids, Scene, Tree, label};
use super::super::maps::Maps;
use super::super::seat::{self, Seat};
use super::super::shared::{HostView, TreeView};
use super::super::slots::{Rank, Slots};
use super::super::snapshot::{Snapshot, complete};
use super::hooks::Hook;
use super::world::World;

/// Buckets of the lineage map: each is read in one step.
const BUCKETS: u32 = 3;

/// The layer of a tree that is alone.
const LAYER: u32 = 0;

/// Passes of a kill, at most.
const PASSES: u32 = 6;

/// The maps, as one command reaches them.
pub(super) struct Desk {
    world: Arc<World>,
    /// Steps until it is killed.
    left: Cell<Option<u32>>,
    /// What a dead command writes to.
    grave: (TreeView, HostView),
}

impl Desk {
    /// Returns whether the command was killed.
    fn is_dead(&self) -> bool {
        self.left.get() == Some(0)
    }

    /// Counts a step; false once the command is dead.
    fn lives(&self) -> bool {
        let Some(left) = self.left.get() else {
            return true;
        };
        self.left.set(Some(left.saturating_sub(1)));
        left > 0
    }

    fn try_step(&self) -> io::Result<&World> {
        let dead = || io::Error::other("this command was killed");
        self.lives().then_some(&*self.world).ok_or_else(dead)
    }
}

impl Maps for Desk {
    type Ring<'a> = ();

    fn tree(&self, slot: u32) -> &TreeView {
        if self.lives() {
            self.world.tree(slot)
        } else {
            &self.grave.0
        }
    }

    fn host(&self) -> &HostView {
        if self.lives() {
            self.world.yield_now();
            &self.world.host
        } else {
            &self.grave.1
        }
    }

    fn members(&self) -> io::Result<Vec<(MemberKey, Membership)>> {
        let mut found = Vec::new();
        for bucket in 0..BUCKETS {
            self.try_step()?.step(|state| {
                let all = state.members.iter();
                let here = all.filter(|(key, _)| key.process.pid % BUCKETS == bucket);
                found.extend(here.map(|(key, value)| (*key, *value)));
            });
        }
        Ok(found)
    }

    fn member(&self, key: &MemberKey) -> io::Result<Option<Membership>> {
        Ok(self.try_step()?.step(|state| state.members.get(key)))
    }

    fn insert_member(&self, key: &MemberKey, membership: Membership) -> io::Result<bool> {
        let inserted = self
            .try_step()?
            .step(|state| state.members.insert(*key, membership));
        match inserted {
            Ok(()) => Ok(true),
            Err(lifemon_ebpf::records::EEXIST) => Ok(false),
            Err(code) => Err(io::Error::from_raw_os_error(-code)),
        }
    }

    fn delete_member(&self, key: &MemberKey) -> io::Result<bool> {
        let deleted = self.try_step()?.step(|state| state.members.remove(key));
        Ok(deleted.is_ok())
    }

    fn roots(&self) -> io::Result<Vec<ProcessId>> {
        let world = self.try_step()?;
        Ok(world.step(|state| state.roots.iter().copied().collect()))
    }

    fn mark_root(&self, root: &ProcessId) -> io::Result<()> {
        self.try_step()?.step(|state| state.roots.insert(*root));
        Ok(())
    }

    fn unmark_root(&self, root: &ProcessId) -> io::Result<()> {
        self.try_step()?.step(|state| state.roots.remove(root));
        Ok(())
    }

    fn set_ring(&self, slot: u32, (): ()) -> io::Result<()> {
        self.try_step()?
            .step(|state| state.rings.insert(slot, Vec::new()));
        self.wait_for_running_programs()
    }

    fn delete_ring(&self, slot: u32) -> io::Result<bool> {
        let was_there = self.try_step()?.step(|state| state.rings.remove(&slot));
        if was_there.is_some() {
            self.wait_for_running_programs()?;
        }
        Ok(was_there.is_some())
    }

    fn wait_for_running_programs(&self) -> io::Result<()> {
        self.try_step()?.wait_for_running_programs();
        // It may have been killed while it waited.
        self.try_step().map(drop)
    }
}

/// A command, and the process that it is.
pub(super) struct Command {
    world: Arc<World>,
    process: ProcessId,
    slots: Slots<Desk>,
}

impl Command {
    /// Returns the command that this process is, which is killed after so many steps, if any.
    pub(super) fn new(world: &Arc<World>, process: ProcessId, killed_after: Option<u32>) -> Self {
        let desk = Desk {
            world: Arc::clone(world),
            left: Cell::new(killed_after),
            grave: Default::default(),
        };
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
            let is_lost = state
                .tasks
                .values()
                .all(|task| state.lineage.get(&task.id).is_some());
            if is_lost {
                state.missed_forks = 0;
            }
        });
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
        world.step(|state| state.is_closed = true);
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
        let due = Due::of(missed_exits, counted(failed), counted(left));
        let records = || {
            world.peek(|state| {
                let all = state.lineage.iter();
                all.map(|(id, record)| (*id, *record)).collect::<Vec<_>>()
            })
        };
        let is_over = |id: &ProcessId| world.peek(|state| state.task(*id).is_none());
        let over = records().into_iter();
        let over = over.filter(|(id, record)| record.state == LIVE && is_over(id));
        for (id, _) in over.filter(|_| due.settling) {
            Hook::begin(&world).settle(id);
        }
        let mut before = usize::MAX;
        while due.sweeping && records().len() < before {
            before = records().len();
            for (id, _) in records() {
                rules::sweep(&Hook::begin(&world), &id);
            }
        }
    }

    /// Sends SIGKILL to one member, or to nobody.
    pub(super) fn strike(&self, id: ProcessId) -> Result<(), Error> {
        let world = &self.world;
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
        Ok(self.world.step(|state| state.lineage.get(id)))
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut found = Vec::new();
        for bucket in 0..BUCKETS {
            self.world.step(|state| {
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
            let next = self.world.step(|state| {
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
            Some(Pids {
                last: state.last_pid,
                turn: Duration::from_nanos(STEPS * u64::from(state.measures.pids)),
            })
        })
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.world.peek(|state| state.now_ns))
    }

    /// Fewer rounds than on a host: the clock is put forward.
    fn pause(&self, time: Duration) {
        let pause_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) * 64;
        self.world.step(|state| state.now_ns += pause_ns);
    }
}

//! What must hold after every step, and at the end.

use std::sync::atomic::Ordering;

use lifemon_ebpf::{EVENT_EXIT, HELD, MemberKey, Membership, ProcessId};

use super::super::shared::TreeView;
use super::world::{INIT, Life, SLOTS, State, World};

impl World {
    /// Checks what holds at all times.
    pub(super) fn check(&self, state: &mut State) {
        self.check_slots(state);
        self.check_labelled(state);
        self.check_rings(state);
        check_records(state);
    }

    /// Checks that whatever is a member of a tree belongs to it, and is counted (I1).
    fn check_slots(&self, state: &State) {
        for slot in 1..SLOTS {
            let tree = &self.trees[slot as usize];
            let generation = tree.generation.load(Ordering::SeqCst);
            let is_used = !generation.is_multiple_of(2) && !tree.owner.get().is_none();
            if !is_used {
                continue;
            }
            let live = tree.live.load(Ordering::SeqCst);
            let members = members_of(state, Membership { slot, generation });
            assert!(
                members.len() as u64 <= live && live < 1 << 32,
                "slot {slot} counts {live} living members and has {members:?}: I1"
            );
            let root = tree.root.get();
            for member in members {
                assert!(
                    state.descends(member, root),
                    "{member:?} is no descendant of {root:?}, and a member"
                );
            }
        }
    }

    /// Checks that a tree that is labelled has every member that runs, unless it is reported that
    /// something was lost (I5).
    fn check_labelled(&self, state: &mut State) {
        let mut counted = Vec::new();
        for (tree, layer, root) in &state.labelled {
            if !self.is_own(*tree) {
                continue;
            }
            let is_reported = self.is_reported(state, *tree);
            let running = state
                .tasks
                .values()
                .filter(|task| task.life == Life::Running);
            let below = running.filter(|task| state.descends(task.id, *root));
            for task in below.filter(|task| !state.is_spared(task.id)) {
                if is_reported && state.is_lost(task.id) {
                    continue;
                }
                let found = state.members.get(&MemberKey::new(task.id, *layer));
                assert!(
                    found == Some(*tree),
                    "{:?} runs below {root:?} and is no member: I5",
                    task.id
                );
                counted.push((tree.slot, tree.generation, task.id));
            }
        }
        state.counted.extend(counted);
    }

    /// Checks that who sees the counter at 0 finds every death in the ring.
    fn check_rings(&self, state: &State) {
        let failed = self.host.failed_deletes.load(Ordering::SeqCst);
        if failed > 0 || state.missed_exits > 0 {
            return;
        }
        for (slot, generation, member) in &state.counted {
            let (slot, generation) = (*slot, *generation);
            let is_own = self.is_own(Membership { slot, generation });
            let tree = &self.trees[slot as usize];
            if !is_own || tree.live.load(Ordering::SeqCst) > 0 || state.is_spared(*member) {
                continue;
            }
            let ring = state.rings.get(&slot).into_iter().flatten();
            let mut deaths = ring.filter(|event| event.kind == EVENT_EXIT);
            assert!(
                deaths.any(|event| event.process == *member),
                "all of slot {slot} are dead, and the death of {member:?} is not in the ring"
            );
        }
    }

    fn is_own(&self, tree: Membership) -> bool {
        let slot: &TreeView = &self.trees[tree.slot as usize];
        slot.generation.load(Ordering::SeqCst) == tree.generation
    }

    /// Returns whether userspace reports that something of this tree was lost.
    fn is_reported(&self, state: &State, tree: Membership) -> bool {
        let (host, tree) = (&self.trees[0], &self.trees[tree.slot as usize]);
        let counters = [&tree.lost_members, &host.lost_records];
        let mut counters = counters.iter();
        counters.any(|counter| counter.load(Ordering::SeqCst) > 0) || state.missed_forks > 0
    }

    /// Notes that every member of a tree is labelled, as a command has found.
    pub(super) fn tree_is_labelled(&self, tree: Membership, layer: u32, root: ProcessId) {
        self.peek(|state| {
            state.labelled.push((tree, layer, root));
            self.check(state);
        });
    }

    /// Checks that no member has gone while its membership stays, and that all are counted once. Not
    /// while that tree is labelled.
    pub(super) fn check_members(&self, tree: Membership) {
        let failed = self.host.failed_deletes.load(Ordering::SeqCst);
        self.peek(|state| {
            if failed > 0 || state.missed_exits > 0 || !state.runs.is_empty() {
                return;
            }
            let members = members_of(state, tree);
            let live = self.live(tree);
            assert_eq!(
                live,
                members.len() as u64,
                "counted, and members: {members:?}"
            );
            for member in members {
                assert!(
                    state.task(member).is_some(),
                    "{member:?} is gone, and a member"
                );
            }
        });
    }

    /// Returns what a tree counts.
    pub(super) fn live(&self, tree: Membership) -> u64 {
        self.trees[tree.slot as usize].live.load(Ordering::SeqCst)
    }

    /// Checks that a proof of extinction is one.
    pub(super) fn check_extinct(&self, tree: Membership, root: ProcessId) {
        self.peek(|state| {
            let is_reported = self.is_reported(state, tree);
            let alive = state.tasks.values().filter(|task| task.life != Life::Dying);
            let mut below = alive.filter(|task| state.descends(task.id, root));
            let is_excused = |id| state.is_spared(id) || is_reported && state.is_lost(id);
            let survivor = below.find(|task| !is_excused(task.id));
            assert!(
                survivor.is_none(),
                "{survivor:?} survives the proof that none is left"
            );
        });
    }

    /// Checks that nothing is left of all that was.
    pub(super) fn check_empty(&self) {
        self.peek(|state| {
            let records = state.lineage.iter().filter(|(id, _)| **id != INIT);
            let records: Vec<_> = records.collect();
            assert!(records.is_empty(), "records are left: {records:?}");
            let members: Vec<_> = state.members.iter().collect();
            assert!(members.is_empty(), "memberships are left: {members:?}");
            assert!(
                state.roots.is_empty(),
                "roots are marked: {:?}",
                state.roots
            );
            assert!(state.rings.is_empty(), "rings are left");
        });
        assert_eq!(self.host.layers.load(Ordering::SeqCst), 0, "layers in use");
    }
}

fn members_of(state: &State, tree: Membership) -> Vec<ProcessId> {
    let members = state.members.iter().filter(|(_, found)| **found == tree);
    members.map(|(key, _)| key.process).collect()
}

/// Checks that records name true creators.
fn check_records(state: &State) {
    for (id, record) in state.lineage.iter() {
        let distance = state.distance(*id, record.creator);
        assert!(
            record.holds_creator != HELD || distance == Some(u64::from(record.elided) + 1),
            "{id:?} has a wrong creator: {record:?}"
        );
    }
}

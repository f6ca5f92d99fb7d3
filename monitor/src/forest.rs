//! The lineage at one time, as a forest: descendants, ghosts, orphans. Pure: no I/O, no clock.

use std::collections::{HashMap, HashSet};

use lifemon_ebpf::{LIVE, ProcessId, Record};

/// A snapshot of the lineage with its links turned around.
#[derive(Debug, Clone, Default)]
pub struct Forest {
    records: HashMap<ProcessId, Record>,
    children: HashMap<ProcessId, Vec<ProcessId>>,
    /// The living.
    by_pid: HashMap<u32, ProcessId>,
}

impl Forest {
    /// Makes a forest of these records, in any order.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = (ProcessId, Record)>) -> Self {
        let records: HashMap<_, _> = records.into_iter().collect();
        let mut children: HashMap<_, Vec<_>> = HashMap::new();
        let mut by_pid = HashMap::new();
        for (id, record) in &records {
            if record.state == LIVE {
                by_pid.insert(id.pid, *id);
            }
            if !record.creator.is_none() && record.creator != *id {
                children.entry(record.creator).or_default().push(*id);
            }
        }
        for list in children.values_mut() {
            list.sort_unstable();
        }
        Self {
            records,
            children,
            by_pid,
        }
    }

    /// Returns the record of a process or ghost.
    #[must_use]
    pub fn record(&self, id: &ProcessId) -> Option<&Record> {
        self.records.get(id)
    }

    /// Returns every process and ghost, in no order.
    pub fn records(&self) -> impl Iterator<Item = (&ProcessId, &Record)> {
        self.records.iter()
    }

    /// Returns every living process, in no order.
    pub fn all_living(&self) -> impl Iterator<Item = ProcessId> {
        self.by_pid.values().copied()
    }

    /// Returns the living process that has this pid.
    #[must_use]
    pub fn live(&self, pid: u32) -> Option<ProcessId> {
        self.by_pid.get(&pid).copied()
    }

    /// Returns whether its record says that it is live: some thread of it can run user code.
    #[must_use]
    pub fn is_live(&self, id: &ProcessId) -> bool {
        self.records
            .get(id)
            .is_some_and(|record| record.state == LIVE)
    }

    /// Returns whether its record says that it is dead: no thread of it can run user code again.
    #[must_use]
    pub fn is_dead(&self, id: &ProcessId) -> bool {
        self.records
            .get(id)
            .is_some_and(|record| record.state != LIVE)
    }

    /// Returns what it created and is still known, oldest first.
    #[must_use]
    pub fn children(&self, id: &ProcessId) -> &[ProcessId] {
        self.children.get(id).map_or(&[], Vec::as_slice)
    }

    /// Returns the root and all its descendants, ghosts included, each creator before what it
    /// created. Works for a root that has no record of its own any more.
    #[must_use]
    pub fn tree(&self, root: ProcessId) -> Vec<ProcessId> {
        let order = self.tree_with_depth(root).into_iter();
        order.map(|(id, _)| id).collect()
    }

    /// Returns the same as [`Forest::tree`], each with its depth below the root.
    #[must_use]
    pub fn tree_with_depth(&self, root: ProcessId) -> Vec<(ProcessId, usize)> {
        let mut order = walk(&[root], |id| self.children(id));
        order.retain(|(id, _)| self.records.contains_key(id));
        order
    }

    /// Returns those whose creator is not known, oldest first: where trees begin.
    #[must_use]
    pub fn tops(&self) -> Vec<ProcessId> {
        let is_top = |record: &Record| !self.records.contains_key(&record.creator);
        let tops = self.records.iter().filter(|(_, record)| is_top(record));
        let mut tops: Vec<_> = tops.map(|(id, _)| *id).collect();
        tops.sort_unstable();
        tops
    }

    /// Returns living members of the tree of `root`.
    #[must_use]
    pub fn living(&self, root: ProcessId) -> Vec<ProcessId> {
        self.tree(root)
            .into_iter()
            .filter(|id| self.is_live(id))
            .collect()
    }

    /// Creators of `id`, nearest first, as far as they are known.
    #[must_use]
    pub fn ancestors(&self, id: &ProcessId) -> Vec<ProcessId> {
        let mut found = Vec::new();
        let mut at = *id;
        while let Some(record) = self.records.get(&at) {
            at = record.creator;
            if at.is_none() || found.contains(&at) || !self.records.contains_key(&at) {
                break;
            }
            found.push(at);
        }
        found
    }

    /// Returns the root of the tree that `id` belongs to: the topmost creator that is reached
    /// without crossing a boundary, or `id` itself. `is_boundary(creator, created)` says where one
    /// tree ends and another begins: what lies above is the system, a session, a shell.
    #[must_use]
    pub fn root_of(
        &self,
        id: &ProcessId,
        mut is_boundary: impl FnMut(&ProcessId, &ProcessId) -> bool,
    ) -> ProcessId {
        let mut at = *id;
        for creator in self.ancestors(id) {
            if is_boundary(&creator, &at) {
                break;
            }
            at = creator;
        }
        at
    }

    /// Returns whether it is live and its creator is known to be dead.
    #[must_use]
    pub fn is_orphan(&self, id: &ProcessId) -> bool {
        let creator = self.records.get(id).map(|record| record.creator);
        self.is_live(id) && creator.is_some_and(|creator| self.is_dead(&creator))
    }

    /// Returns every living process whose creator is dead, oldest first.
    #[must_use]
    pub fn orphans(&self) -> Vec<ProcessId> {
        let mut found: Vec<_> = self
            .records
            .keys()
            .filter(|id| self.is_orphan(id))
            .copied()
            .collect();
        found.sort_unstable();
        found
    }

    /// Returns the number of ghosts.
    #[must_use]
    pub fn ghosts(&self) -> usize {
        self.records
            .values()
            .filter(|record| record.state != LIVE)
            .count()
    }

    /// Returns the number of processes and ghosts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Lists trees, each creator before what it created, with how far each is below its top.
pub fn walk<'a>(
    tops: &[ProcessId],
    children: impl Fn(&ProcessId) -> &'a [ProcessId],
) -> Vec<(ProcessId, usize)> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut open: Vec<_> = tops.iter().rev().map(|top| (*top, 0)).collect();
    // A half-written snapshot could hold a circle; each process is visited once.
    while let Some((id, depth)) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        order.push((id, depth));
        let children = children(&id).iter().rev();
        open.extend(children.map(|child| (*child, depth + 1)));
    }
    order
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::DEAD;

    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId::new(pid, u64::from(pid) * 10)
    }

    fn record(creator: u32, state: u64) -> Record {
        let creator = if creator == 0 {
            ProcessId::NONE
        } else {
            id(creator)
        };
        Record {
            creator,
            state,
            ..Record::default()
        }
    }

    fn family() -> Forest {
        // 1 -> 2 (dead) -> 3 -> 4, 1 -> 5
        Forest::new([
            (id(4), record(3, LIVE)),
            (id(3), record(2, LIVE)),
            (id(2), record(1, DEAD)),
            (id(1), record(0, LIVE)),
            (id(5), record(1, LIVE)),
        ])
    }

    #[test]
    fn a_tree_reaches_through_its_ghosts() {
        assert_eq!(family().tree(id(1)), [id(1), id(2), id(3), id(4), id(5)]);
        assert_eq!(family().living(id(1)), [id(1), id(3), id(4), id(5)]);
    }

    #[test]
    fn a_ghost_can_be_the_root() {
        assert_eq!(family().living(id(2)), [id(3), id(4)]);
    }

    #[test]
    fn an_orphan_is_alive_and_its_creator_is_dead() {
        assert_eq!(family().orphans(), [id(3)]);
    }

    #[test]
    fn ancestors_go_up_through_ghosts() {
        assert_eq!(family().ancestors(&id(4)), [id(3), id(2), id(1)]);
    }

    #[test]
    fn a_root_lies_below_the_first_boundary() {
        let forest = family();
        let below = |top: u32| forest.root_of(&id(4), |creator, _| *creator == id(top));
        assert_eq!(below(1), id(2));
        assert_eq!(below(3), id(4));
        assert_eq!(forest.root_of(&id(4), |_, _| false), id(1));
    }

    #[test]
    fn a_circle_in_a_half_written_snapshot_ends() {
        let forest = Forest::new([(id(1), record(2, LIVE)), (id(2), record(1, LIVE))]);
        assert_eq!(forest.tree(id(1)).len(), 2);
        assert!(forest.ancestors(&id(1)).len() <= 2);
    }
}

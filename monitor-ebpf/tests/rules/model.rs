//! The naive model: what the store must hold, computed afresh, and every process that ever was.

use std::collections::{BTreeMap, BTreeSet};

use lifemon_ebpf::limits::{GHOSTS_IN_A_ROW, RELEASE_STEPS, SPLICES};
use lifemon_ebpf::rules::Link;
use lifemon_ebpf::{DEAD, HELD, Holders, LIVE, ProcessId};

use crate::store::{Records, count_in};

/// Drops every record that no living process needs, and counts the references afresh.
pub(crate) fn tidy(records: &mut Records) {
    let mut needed = BTreeSet::new();
    for (id, link) in records.iter().filter(|(_, link)| link.state == LIVE) {
        let (mut at, mut link) = (*id, link);
        while needed.insert(at) && link.holds_creator == HELD {
            at = link.creator;
            link = records.get(&at).expect("a held creator has a record");
        }
    }
    records.retain(|id, _| needed.contains(id));
    let mut all = BTreeMap::<_, (u64, Holders)>::new();
    for (id, link) in records
        .iter()
        .filter(|(_, link)| link.holds_creator == HELD)
    {
        let (count, holders) = all.entry(link.creator).or_default();
        *count += 1;
        count_in(holders, id);
    }
    for (id, link) in records {
        let (count, holders) = all.remove(id).unwrap_or_default();
        link.references = u64::from(link.state == LIVE) + count;
        link.holders = holders;
    }
}

/// Ghosts above `id` that nothing but `id` needs, nearest first.
pub(crate) fn row_above(records: &Records, id: &ProcessId) -> Vec<ProcessId> {
    let mut row = Vec::new();
    let mut link = records[id];
    while link.holds_creator == HELD {
        let above = records[&link.creator];
        if above.state == LIVE || above.references != 1 {
            break;
        }
        row.push(link.creator);
        link = above;
    }
    row
}

/// Returns what one death makes of the records: what nobody needs goes; and where the row is longer
/// than [`GHOSTS_IN_A_ROW`] in which it, or the first above it that stays, is a ghost, the last go,
/// at most [`SPLICES`] and none from a watched root on.
pub(crate) fn after_death(
    mut records: Records,
    roots: &BTreeSet<ProcessId>,
    id: &ProcessId,
) -> Records {
    let line: Vec<_> = line_above(&records, id);
    records.get_mut(id).expect("it is dying").state = DEAD;
    tidy(&mut records);
    let gone = line
        .iter()
        .take_while(|at| !records.contains_key(at))
        .count();
    // What the limit leaves to the sweep is not looked at.
    let Some(at) = line.get(gone).filter(|_| gone <= RELEASE_STEPS as usize) else {
        return records;
    };
    if let Some(bottom) = below_row(&records, at) {
        splice(&mut records, roots, &bottom);
    }
    records
}

/// `id` and all above it, nearest first.
fn line_above(records: &Records, id: &ProcessId) -> Vec<ProcessId> {
    let above = |id: &ProcessId| {
        let link = records[id];
        (link.holds_creator == HELD).then_some(link.creator)
    };
    std::iter::successors(Some(*id), above).collect()
}

/// The record below the row in which `at` is a ghost, so far as a death looks.
fn below_row(records: &Records, at: &ProcessId) -> Option<ProcessId> {
    let is_in_a_row = |at: &ProcessId| records[at].state == DEAD && records[at].references == 1;
    let below = |at: &ProcessId| {
        let is_below =
            |(_, link): &(&ProcessId, &Link)| link.holds_creator == HELD && link.creator == *at;
        let found = records.iter().find(is_below).filter(|_| is_in_a_row(at));
        found.map(|(id, _)| *id)
    };
    let steps = GHOSTS_IN_A_ROW as usize + 1;
    let row = std::iter::successors(Some(*at), below).take(steps + 1);
    row.last().filter(|_| is_in_a_row(at))
}

fn splice(records: &mut Records, roots: &BTreeSet<ProcessId>, id: &ProcessId) {
    let row = row_above(records, id);
    let excess = row
        .len()
        .saturating_sub(GHOSTS_IN_A_ROW as usize)
        .min(SPLICES as usize);
    let gone = row.iter().take(excess);
    for ghost in gone.take_while(|ghost| !roots.contains(ghost)) {
        let above = records.remove(ghost).expect("it is in the row");
        let link = records.get_mut(id).expect("it is below");
        link.creator = above.creator;
        link.holds_creator = above.holds_creator;
        link.elided += above.elided + 1;
    }
    tidy(records);
}

/// Every process that ever was, with its true creator.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) creators: BTreeMap<ProcessId, ProcessId>,
    /// Oldest first.
    pub(crate) alive: Vec<ProcessId>,
}

impl World {
    pub(crate) fn create(&mut self, creator: ProcessId) -> ProcessId {
        let number = self.creators.len() as u32 + 1;
        let id = ProcessId::new(number, u64::from(number) * 10);
        self.creators.insert(id, creator);
        self.alive.push(id);
        id
    }

    /// The true creators of `id`, nearest first.
    pub(crate) fn chain(&self, id: ProcessId) -> impl Iterator<Item = ProcessId> {
        let above = |at: &ProcessId| self.creators.get(at).copied().filter(|id| !id.is_none());
        std::iter::successors(above(&id), move |at| above(at))
    }
}

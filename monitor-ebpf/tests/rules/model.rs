//! The naive model: what the store must hold, computed afresh, and every process that ever was.

use std::collections::{BTreeMap, BTreeSet};

use lifemon_ebpf::limits::{GHOSTS_IN_A_ROW, SPLICES};
use lifemon_ebpf::{DEAD, HELD, LIVE, ProcessId};

use crate::store::Records;

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
    let mut counts = BTreeMap::<_, u64>::new();
    for link in records.values().filter(|link| link.holds_creator == HELD) {
        *counts.entry(link.creator).or_default() += 1;
    }
    for (id, link) in records {
        link.references = u64::from(link.state == LIVE) + counts.get(id).unwrap_or(&0);
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

/// What one death makes of the records: of a row above it of more than [`GHOSTS_IN_A_ROW`] the
/// nearest go, at most [`SPLICES`] and none from a watched root on; and what nobody needs goes.
pub(crate) fn after_death(
    mut records: Records,
    roots: &BTreeSet<ProcessId>,
    id: &ProcessId,
) -> Records {
    if records[id].references > 1 {
        let row = row_above(&records, id);
        let excess = row
            .len()
            .saturating_sub(GHOSTS_IN_A_ROW as usize)
            .min(SPLICES as usize);
        for ghost in row
            .iter()
            .take(excess)
            .take_while(|ghost| !roots.contains(ghost))
        {
            let above = records.remove(ghost).expect("it is in the row");
            let link = records.get_mut(id).expect("it is dying");
            link.creator = above.creator;
            link.holds_creator = above.holds_creator;
            link.elided += above.elided + 1;
        }
    }
    records.get_mut(id).expect("it is dying").state = DEAD;
    tidy(&mut records);
    records
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

//! The lineage at one time, each creator before what it created, with what `/proc` adds to the
//! living: what `lifemon tree` shows. A process that has died since the snapshot is shown as its
//! record has it.

use std::collections::{HashMap, HashSet};

use lifemon_ebpf::{ProcessId, Record};
use serde::{Deserialize, Serialize};

use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, CommandLine, Commands, Placement, Zombie};
use crate::process::{Died, Process};

/// One process or ghost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// Its depth below an entry without a creator here.
    pub depth: usize,
    /// The facts that `/proc` adds; `None` when it is dead.
    pub live: Option<Live>,
    /// Time and kind of its death; `None` while its record is live.
    pub died: Option<Died>,
    /// Number of later entries that have it as their creator.
    pub children: usize,
}

/// The facts that only `/proc` knows of a living process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Live {
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Pid of the present parent.
    pub parent: u32,
    /// Its command line.
    pub command: CommandLine,
    /// Control group, unit, container.
    pub placement: Placement,
}

impl Entry {
    /// Returns whether its present parent is not its creator: it was reparented.
    #[must_use]
    pub fn is_reparented(&self) -> bool {
        let creator = self.process.creator.map(|creator| creator.pid);
        self.live
            .as_ref()
            .is_some_and(|live| creator.is_some_and(|creator| creator != live.parent))
    }
}

/// Returns the tree of `root`, or the whole host, in the order of creation.
#[must_use]
pub fn gather(snapshot: &Snapshot, root: Option<ProcessId>) -> Vec<Entry> {
    gather_where(snapshot, root, |_, _| true).0
}

/// Returns those of them that `shows` picks, and how many others there are: what is not shown is
/// not looked at.
#[must_use]
pub fn gather_where(
    snapshot: &Snapshot,
    root: Option<ProcessId>,
    shows: impl Fn(&ProcessId, &Record) -> bool,
) -> (Vec<Entry>, usize) {
    let forest = Forest::new(snapshot.records.iter().copied());
    let tops = root.map_or_else(|| forest.tops(), |root| vec![root]);
    let (mut entries, mut others) = (Vec::new(), 0);
    let commands = Commands::default();
    for top in tops {
        for (id, depth) in forest.tree_with_depth(top) {
            match forest.record(&id) {
                Some(record) if shows(&id, record) => {
                    entries.extend(entry(&forest, id, depth, &commands));
                }
                _ => others += 1,
            }
        }
    }
    (entries, others)
}

/// Returns the zombies of the living in a list, or `all` of the host.
#[must_use]
pub fn zombies_of(entries: &[Entry], all: bool) -> Vec<Zombie> {
    let living = entries.iter().filter(|entry| entry.died.is_none());
    let parents: HashSet<u32> = living.map(|entry| entry.process.id.pid).collect();
    let mut zombies = proc::zombies();
    zombies.retain(|zombie| all || parents.contains(&zombie.parent));
    zombies
}

/// Keeps the entries that are meant, and the dead that stand above one. Whoever stands below
/// somebody that is left out moves up.
#[cfg_attr(
    not(feature = "cli"),
    expect(dead_code, reason = "only the command line chooses")
)]
pub(crate) fn keep(entries: &mut Vec<Entry>, is_meant: impl Fn(&Entry) -> bool) {
    let mut kept = vec![false; entries.len()];
    // Entries above the present one, and whether what stands above each is settled.
    let mut above: Vec<(usize, bool)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        while above
            .last()
            .is_some_and(|(top, _)| entries[*top].depth >= entry.depth)
        {
            above.pop();
        }
        if is_meant(entry) {
            kept[index] = true;
            for (top, is_settled) in above.iter_mut().rev() {
                if std::mem::replace(is_settled, true) {
                    break;
                }
                kept[*top] |= entries[*top].died.is_some();
            }
        }
        above.push((index, false));
    }
    let mut line: Vec<(usize, usize)> = Vec::new();
    let mut kept = kept.into_iter();
    entries.retain_mut(|entry| {
        while line.last().is_some_and(|(depth, _)| *depth >= entry.depth) {
            line.pop();
        }
        let is_kept = kept.next().unwrap_or_default();
        if is_kept {
            let depth = line.last().map_or(0, |(_, depth)| depth + 1);
            line.push((entry.depth, depth));
            entry.depth = depth;
        }
        is_kept
    });
    let mut children: HashMap<ProcessId, usize> = HashMap::new();
    for creator in entries.iter().filter_map(|entry| entry.process.creator) {
        *children.entry(creator).or_default() += 1;
    }
    for entry in entries {
        entry.children = children.get(&entry.process.id).copied().unwrap_or_default();
    }
}

fn entry(forest: &Forest, id: ProcessId, depth: usize, commands: &Commands) -> Option<Entry> {
    let record = forest.record(&id)?;
    Some(Entry {
        process: Process::of_record(id, record),
        depth,
        live: forest.is_live(&id).then(|| look(id, commands)).flatten(),
        died: Died::of_record(record),
        children: forest.children(&id).len(),
    })
}

/// Returns what `/proc` adds to a living process.
pub(crate) fn look(id: ProcessId, commands: &Commands) -> Option<Live> {
    let stat = proc::stat(id.pid)?;
    let live = Live {
        state: stat.state,
        parent: stat.parent,
        command: commands.of(id.pid)?,
        placement: proc::placement_of(id.pid)?,
    };
    proc::owns_pid(id).then_some(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pid: u32, creator: u32, depth: usize, is_dead: bool) -> Entry {
        let id = |pid| ProcessId::new(pid, 1);
        let died = Died {
            at_ns: 5,
            death: crate::process::Death::from_wait_status(9),
        };
        Entry {
            process: Process {
                creator: Some(id(creator)),
                ..Process::unknown(id(pid))
            },
            depth,
            live: None,
            died: is_dead.then_some(died),
            children: 0,
        }
    }

    #[test]
    fn the_dead_above_what_is_meant_stay_and_the_living_do_not() {
        // 1 -> 2 (dead) -> 3 -> 4 (dead) -> 5; 1 -> 6 (dead) -> 7
        let mut entries = vec![
            entry(1, 0, 0, false),
            entry(2, 1, 1, true),
            entry(3, 2, 2, false),
            entry(4, 3, 3, true),
            entry(5, 4, 4, false),
            entry(6, 1, 1, true),
            entry(7, 6, 2, false),
        ];
        keep(&mut entries, |entry| entry.process.id.pid == 5);
        let kept: Vec<_> = entries
            .iter()
            .map(|entry| (entry.process.id.pid, entry.depth, entry.children))
            .collect();
        assert_eq!(kept, [(2, 0, 0), (4, 1, 1), (5, 2, 0)]);
        keep(&mut entries, |_| false);
        assert!(entries.is_empty());
    }
}

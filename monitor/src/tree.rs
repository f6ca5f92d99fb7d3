//! The lineage at one time, each creator before what it created, with what `/proc` adds to the
//! living: what `lifemon tree` shows. A process that has died since the snapshot is shown as its
//! record has it.

use lifemon_ebpf::{ProcessId, Record};
use serde::{Deserialize, Serialize};

use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, CommandLine, Placement};
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
    for top in tops {
        for (id, depth) in forest.tree_with_depth(top) {
            match forest.record(&id) {
                Some(record) if shows(&id, record) => entries.extend(entry(&forest, id, depth)),
                _ => others += 1,
            }
        }
    }
    (entries, others)
}

fn entry(forest: &Forest, id: ProcessId, depth: usize) -> Option<Entry> {
    let record = forest.record(&id)?;
    Some(Entry {
        process: Process::of_record(id, record),
        depth,
        live: forest.is_live(&id).then(|| look(id)).flatten(),
        died: Died::of_record(record),
        children: forest.children(&id).len(),
    })
}

fn look(id: ProcessId) -> Option<Live> {
    let stat = proc::stat(id.pid)?;
    let live = Live {
        state: stat.state,
        parent: stat.parent,
        command: proc::command_line_of(id.pid)?,
        placement: proc::placement_of(id.pid)?,
    };
    proc::owns_pid(id).then_some(live)
}

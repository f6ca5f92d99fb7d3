//! The lineage at one time, each creator before what it created, with what `/proc` adds to the
//! living: what `lifemon tree` shows. What has died since the snapshot keeps what the record says.

use lifemon_ebpf::ProcessId;

use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, CommandLine, Placement};
use crate::process::{Died, Process};

/// One process or ghost.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who it is.
    pub process: Process,
    /// How far below a process that has no creator here.
    pub depth: usize,
    /// What `/proc` adds; `None` when it is dead.
    pub live: Option<Live>,
    /// When and how it died; `None` while the record says that it lives.
    pub died: Option<Died>,
    /// How many entries that follow have it as their creator.
    pub children: usize,
}

/// What only `/proc` knows of a living process.
#[derive(Debug, Clone)]
pub struct Live {
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Pid of the present parent.
    pub parent: u32,
    /// How it was started.
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
    let forest = Forest::new(snapshot.records.iter().copied());
    let tops = root.map_or_else(|| forest.tops(), |root| vec![root]);
    let mut entries = Vec::new();
    for top in tops {
        for (id, depth) in forest.tree_with_depth(top) {
            entries.extend(entry(&forest, id, depth));
        }
    }
    entries
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

//! Orphans: every living process whose creator is dead, from the lineage and never from `ppid ==
//! 1`. Children go to the nearest subreaper, not always to process 1:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n640>.
//! `class` decides the class of an orphan, `inferred` looks at processes that are older than
//! tracking.
//!
//! The race: between the snapshot and the look into `/proc` an orphan can die and its pid be taken
//! again. Whatever `/proc` says counts only if the process that is there has the orphan's start
//! time; what has died meanwhile is left out.

mod class;
mod inferred;

use std::collections::HashMap;

use lifemon_ebpf::{INFERRED, LIVE, ProcessId, Record};
use serde::{Deserialize, Serialize};

pub use class::{Class, Evidence, Facts, classify};

use crate::forest::Forest;
use crate::gpu::{Holders, Holding};
use crate::proc::{self, CommandLine, Placement, Stat};
use crate::process::{Death, Process, Who};

/// Programs whose terminal sessions outlive what is typed in them.
const SESSION_KEEPERS: [&str; 6] = ["tmux", "screen", "SCREEN", "sshd", "mosh-server", "zellij"];

/// A living process whose creator is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Orphan {
    /// The orphan itself.
    pub process: Process,
    /// Its class.
    pub class: Class,
    /// The reasons for that class.
    pub evidence: Vec<Evidence>,
    /// Its creator; `None` when unknown.
    pub creator: Option<Who>,
    /// The death of the creator.
    pub creator_death: Option<Death>,
    /// Time of the creator's death, in ns since boot: it has been an orphan since then.
    pub orphaned_ns: Option<u64>,
    /// The root of its tree.
    pub root: Option<Who>,
    /// True if that root is live.
    pub root_alive: bool,
    /// Its present parent; `None` while its creator is not gone, because it has no other one yet.
    pub parent: Option<Who>,
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Its command line.
    pub command: CommandLine,
    /// Control group, unit, container.
    pub placement: Placement,
    /// GPUs that it holds.
    pub gpu: Holding,
}

impl Orphan {
    /// Returns whether it was seen to be left behind, before anybody kept its history.
    #[must_use]
    pub fn was_seen_left(&self) -> bool {
        let is_seen = |evidence: &Evidence| matches!(evidence, Evidence::LeftBehind(_));
        self.evidence.iter().any(is_seen)
    }
}

/// A filter for orphans.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only those of this tree. For processes older than tracking: those that have something in
    /// common with it.
    pub tree: Option<ProcessId>,
    /// Also processes older than tracking that only look like orphans.
    pub inferred: bool,
}

/// Finds the orphans of a snapshot, oldest first. `holders` are the processes that hold a GPU.
#[must_use]
pub fn find(forest: &Forest, wanted: &Wanted, holders: &Holders) -> Vec<Orphan> {
    let tree: Option<std::collections::HashSet<ProcessId>> = wanted
        .tree
        .map(|root| forest.tree(root).into_iter().collect());
    let mut search = Search {
        forest,
        holders,
        root: wanted.tree,
        shells: HashMap::new(),
    };
    let orphans = forest.orphans().into_iter();
    let mut found: Vec<Orphan> = orphans
        .filter(|id| tree.as_ref().is_none_or(|tree| tree.contains(id)))
        .filter_map(|id| search.seen(id))
        .collect();
    found.extend(if wanted.inferred {
        inferred::find(&search, wanted.tree)
    } else {
        inferred::seen_left(&search, wanted.tree)
    });
    found.sort_by_key(|orphan| orphan.process.id);
    found
}

/// Returns the root of the tree that `id` belongs to. A tree ends below process 1, below a shell
/// that somebody types into, and where the control group changes: units, sessions of users and
/// containers have one each.
#[must_use]
pub fn root_of(forest: &Forest, id: ProcessId) -> ProcessId {
    let holders = Holders::default();
    let mut search = Search {
        forest,
        holders: &holders,
        root: None,
        shells: HashMap::new(),
    };
    search.root_of(id)
}

/// A search under way.
struct Search<'a> {
    forest: &'a Forest,
    holders: &'a Holders,
    /// The root of the tree that was asked about.
    root: Option<ProcessId>,
    /// For each living process looked at, whether it is a shell on a terminal.
    shells: HashMap<ProcessId, bool>,
}

impl Search<'_> {
    /// Describes an orphan whose creator's death was seen; `None` when it has died meanwhile.
    fn seen(&mut self, id: ProcessId) -> Option<Orphan> {
        let record = self.forest.record(&id)?;
        let creator = self.forest.record(&record.creator)?;
        let root = self.root.unwrap_or_else(|| self.root_of(record.creator));
        let stat = proc::stat(id.pid)?;
        let mut orphan = self.describe(id, record, &stat)?;
        let root_alive = self.forest.is_live(&root);
        let facts = Facts {
            creator_death: Some(Death::of_record(creator)),
            creator_outlived_ns: Some(creator.exit_ns.saturating_sub(id.start_ns)),
            root_alive,
            own_unit: own_unit(record, creator, &orphan.placement),
            own_session: stat.session == id.pid || stat.session == record.creator.pid,
            other_program: record.name != creator.name,
            null_input: has_null_input(id.pid),
            terminal_session: self.terminal_session(&stat),
        };
        (orphan.class, orphan.evidence) = classify(&facts);
        orphan.creator = self.who(record.creator);
        orphan.creator_death = facts.creator_death;
        orphan.orphaned_ns = Some(creator.exit_ns);
        orphan.root = self.who(root);
        orphan.root_alive = root_alive;
        orphan.parent = self.parent(&stat, record.creator);
        proc::is_live(id).then_some(orphan)
    }

    /// Describes what is common to orphans of all classes; returns `None` when no process has the
    /// pid. The caller checks afterwards that the pid still belongs to `id`.
    fn describe(&self, id: ProcessId, record: &Record, stat: &Stat) -> Option<Orphan> {
        Some(Orphan {
            process: Process::of_record(id, record),
            class: Class::Inferred,
            evidence: Vec::new(),
            creator: None,
            creator_death: None,
            orphaned_ns: None,
            root: None,
            root_alive: false,
            parent: None,
            state: stat.state,
            command: proc::command_line_of(id.pid)?,
            placement: proc::placement_of(id.pid)?,
            gpu: self.holders.get(&id).cloned().unwrap_or_default(),
        })
    }

    /// Finds the root as [`root_of`] does.
    fn root_of(&mut self, id: ProcessId) -> ProcessId {
        let forest = self.forest;
        forest.root_of(&id, |above, below| {
            let group = |id: &ProcessId| forest.record(id).map(|record| record.cgroup_id);
            above.pid == 1 || group(above) != group(below) || self.is_typed_into(above)
        })
    }

    /// Returns whether the process is live and leads a session on a terminal.
    fn is_typed_into(&mut self, id: &ProcessId) -> bool {
        let forest = self.forest;
        *self.shells.entry(*id).or_insert_with(|| {
            forest.is_live(id)
                && proc::stat(id.pid)
                    .is_some_and(|stat| stat.session == id.pid && stat.terminal != 0)
        })
    }

    /// Returns the keeper of the terminal session that a process is in, if its leader lives.
    fn terminal_session(&self, stat: &Stat) -> Option<String> {
        if stat.terminal == 0 || stat.session == 0 {
            return None;
        }
        let leader = self.live(stat.session)?;
        let above = self.forest.ancestors(&leader).into_iter();
        above.chain([leader]).find_map(|id| {
            let name = self.who(id)?.name?;
            let keeps = SESSION_KEEPERS
                .iter()
                .any(|keeper| name.starts_with(keeper));
            keeps.then_some(name)
        })
    }

    /// Returns the living process with this pid.
    fn live(&self, pid: u32) -> Option<ProcessId> {
        self.forest.live(pid)
    }

    /// Returns identity and name, from the record.
    fn who(&self, id: ProcessId) -> Option<Who> {
        let record = self.forest.record(&id)?;
        Some(Process::of_record(id, record).who())
    }

    /// Returns the present parent, once it is another than the creator.
    fn parent(&self, stat: &Stat, creator: ProcessId) -> Option<Who> {
        if stat.parent == 0 || (stat.parent == creator.pid && proc::owns_pid(creator)) {
            return None;
        }
        self.live(stat.parent).and_then(|parent| self.who(parent))
    }

    /// Returns living processes that are older than tracking, without process 1.
    fn older(&self) -> impl Iterator<Item = (&ProcessId, &Record)> {
        self.forest.records().filter(|(id, record)| {
            record.state == LIVE && record.origin & INFERRED != 0 && id.pid != 1
        })
    }
}

/// Returns the unit of a process, when its creator was not in the same control group.
fn own_unit(record: &Record, creator: &Record, placement: &Placement) -> Option<String> {
    (record.cgroup_id != creator.cgroup_id)
        .then(|| placement.unit.clone())
        .flatten()
}

fn has_null_input(pid: u32) -> bool {
    proc::input(pid).is_some_and(|path| path.as_os_str() == "/dev/null")
}

//! Orphans: every living process whose creator is dead, from the lineage and never from `ppid ==
//! 1`. Children go to the nearest subreaper, not always to process 1:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n640>.
//!
//! `verdict` decides from facts how an orphan was left, `search` collects the facts, `subtree` sums
//! up what an orphan and everything below it hold, `inferred` looks at processes that are older
//! than tracking. The verdict on a process is the same whatever was asked: a filter leaves out, and
//! never changes what is left in.
//!
//! The race: between the snapshot and the look into `/proc` an orphan can die and its pid be taken
//! again. Whatever `/proc` says counts only if the process that is there has the orphan's start
//! time; what has died meanwhile is left out.

mod inferred;
mod search;
mod subtree;
mod verdict;

#[cfg(feature = "cli")]
use std::collections::BTreeMap;
use std::collections::{HashMap, HashSet};

use lifemon_ebpf::{ProcessId, Record};
use serde::{Deserialize, Serialize};

pub use search::root_of;
pub use subtree::{Subtree, measure, sum};
pub use verdict::{Evidence, Verdict};

use crate::forest::Forest;
use crate::gpu::{Holders, Holding};
use crate::proc::{CommandLine, Placement};
use crate::process::{Death, Process, Who};
use search::Search;

/// A living process whose creator is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Orphan {
    /// The orphan itself.
    pub process: Process,
    /// How it was left.
    pub verdict: Verdict,
    /// The reasons for that verdict.
    pub evidence: Vec<Evidence>,
    /// Its creator; `None` when unknown.
    pub creator: Option<Who>,
    /// The death of the creator.
    pub creator_death: Option<Death>,
    /// Time of the creator's death, in ns since boot: it has been an orphan since then.
    pub orphaned_ns: Option<u64>,
    /// The root of its tree.
    pub root: Option<Who>,
    /// True if that root is live: then the orphan is *reparented*, otherwise *stranded*.
    pub root_alive: bool,
    /// Its present parent; `None` while its creator is not gone, because it has no other one yet.
    pub parent: Option<Who>,
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Its command line.
    pub command: CommandLine,
    /// Control group, unit, container.
    pub placement: Placement,
    /// GPUs that it holds itself.
    pub gpu: Holding,
    /// The orphan and everything below it.
    pub subtree: Subtree,
}

impl Orphan {
    /// Returns whether it was seen to be left behind, before anybody kept its history.
    #[must_use]
    pub fn was_seen_left(&self) -> bool {
        let is_seen = |evidence: &Evidence| matches!(evidence, Evidence::LeftBehind(_));
        self.evidence.iter().any(is_seen)
    }

    /// Leaves out of what is said of it whom somebody does not see.
    #[cfg(feature = "cli")]
    pub(crate) fn hide(&mut self, sees: impl Fn(ProcessId) -> bool) {
        for who in [&mut self.creator, &mut self.root, &mut self.parent] {
            if who.as_ref().is_some_and(|who| !sees(who.id)) {
                *who = None;
            }
        }
    }
}

/// The sources of what is said of orphans, all of one time.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The lineage.
    pub forest: &'a Forest,
    /// Processes to which those are handed that are orphaned below them.
    pub subreapers: &'a HashSet<ProcessId>,
    /// Processes that hold a GPU.
    pub holders: &'a Holders,
}

/// Finds the orphans, oldest first: of one tree, where one is given. Processes older than tracking
/// that look like orphans are among them; where a tree is given, those that have something in
/// common with it. What is measured of living processes ([`measure`]) is not in it yet.
#[must_use]
pub fn find(known: &Known<'_>, tree: Option<ProcessId>) -> Vec<Orphan> {
    let forest = known.forest;
    let members: Option<HashSet<_>> = tree.map(|root| forest.tree(root).into_iter().collect());
    let mut search = Search::new(known);
    let orphans = forest.orphans().into_iter();
    let mut found: Vec<Orphan> = orphans
        .filter(|id| members.as_ref().is_none_or(|members| members.contains(id)))
        .filter_map(|id| search.seen(id))
        .collect();
    found.extend(inferred::find(&search, tree));
    found.sort_by_key(|orphan| orphan.process.id);
    subtree::add_held(known, &mut found);
    found
}

/// Finds the processes of a tree that were leaked, oldest first. Processes older than tracking are
/// not looked at: on those the verdict is another.
#[cfg(feature = "agent")]
pub(crate) fn leaked(known: &Known<'_>, root: ProcessId) -> Vec<ProcessId> {
    let members = known.forest.tree(root).into_iter();
    let orphans = members.filter(|id| known.forest.is_orphan(id));
    let mut search = Search::new(known);
    let is_leaked = |id: &ProcessId| search.verdict(*id) == Some(Verdict::Leaked);
    let mut leaked: Vec<_> = orphans.filter(is_leaked).collect();
    leaked.sort_unstable();
    leaked
}

/// Returns the orphan that this process is, measured; `None` when it is none.
#[must_use]
pub fn of(known: &Known<'_>, id: ProcessId) -> Option<Orphan> {
    let mut search = Search::new(known);
    let seen = known.forest.is_orphan(&id).then(|| search.seen(id));
    let found = seen.flatten().or_else(|| {
        let mut inferred = inferred::find(&search, None).into_iter();
        inferred.find(|orphan| orphan.process.id == id)
    });
    let mut found: Vec<_> = found.into_iter().collect();
    subtree::add_held(known, &mut found);
    measure(known.forest, &mut found);
    found.pop()
}

/// Finds the orphans that hold a GPU, themselves or by what is below them, and measures them.
#[must_use]
pub fn with_gpus(known: &Known<'_>) -> Vec<Orphan> {
    let mut found = find(known, None);
    found.retain(|orphan| !orphan.subtree.gpu.is_empty());
    measure(known.forest, &mut found);
    found
}

/// Leaves out those that are not to be shown; returns how many, by their verdicts.
#[cfg(feature = "cli")]
pub(crate) fn leave_out(
    orphans: &mut Vec<Orphan>,
    is_shown: impl Fn(&Orphan) -> bool,
) -> BTreeMap<Verdict, usize> {
    let mut not_shown = BTreeMap::new();
    orphans.retain(|orphan| {
        let is_shown = is_shown(orphan);
        if !is_shown {
            *not_shown.entry(orphan.verdict).or_default() += 1;
        }
        is_shown
    });
    not_shown
}

/// Returns those of these orphans below which, or in whose place, stands a living process for which
/// `is_meant` holds.
#[must_use]
pub fn with_any(
    forest: &Forest,
    orphans: &[Orphan],
    mut is_meant: impl FnMut(ProcessId, &Record) -> bool,
) -> HashSet<ProcessId> {
    let tops: Vec<_> = orphans.iter().map(|orphan| orphan.process.id).collect();
    let mut found = HashSet::new();
    for (id, _) in crate::forest::walk(&tops, |id| forest.children(id)) {
        let Some(record) = forest.record(&id).filter(|_| forest.is_live(&id)) else {
            continue;
        };
        if is_meant(id, record) {
            found.insert(id);
            found.extend(forest.ancestors(&id));
        }
    }
    found
}

/// Returns for each of these processes the orphan that it is or stands below. Of several that is
/// the one with the worst verdict, and then the nearest.
#[must_use]
pub fn above<'a>(
    forest: &Forest,
    orphans: &'a [Orphan],
    processes: impl Iterator<Item = ProcessId>,
) -> HashMap<ProcessId, &'a Orphan> {
    let by_id: HashMap<_, _> = orphans
        .iter()
        .map(|orphan| (orphan.process.id, orphan))
        .collect();
    let found = processes.filter_map(|id| {
        let line = [id].into_iter().chain(forest.ancestors(&id));
        let orphans = line.filter_map(|id| by_id.get(&id).copied());
        // The first of equal ones: the nearest.
        Some((id, orphans.min_by_key(|orphan| orphan.verdict)?))
    });
    found.collect()
}

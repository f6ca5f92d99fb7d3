//! The lineage at one time: the tree as it is, and what was left behind in it.

use serde::{Deserialize, Serialize};

use super::Root;
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::kernel::{Error, LoadOptions, Tracker};
use crate::loss::Loss;
use crate::orphan::{self, Known, Orphan};
use crate::tree::{self, Entry};

/// The lineage at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TreeReport {
    /// The root that was asked for; `None` for the whole host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<ProcessId>,
    /// Processes and ghosts, each creator before what it created.
    pub entries: Vec<Entry>,
    /// Since when the lineage is known, ns since boot.
    pub since_ns: u64,
    /// The losses that make the answer incomplete.
    pub losses: Vec<Loss>,
}

/// Returns the tree of `root`, or of the whole host, with the dead that have living descendants.
///
/// Takes milliseconds, and more where the host's tracker is off: then a private one is loaded, and
/// the history begins now.
///
/// ```no_run
/// # fn main() -> Result<(), lifemon::Error> {
/// let report = lifemon::tree(Some(4200.into()))?;
/// for entry in &report.entries {
///     let name = entry.process.name.as_deref().unwrap_or("?");
///     let mark = if entry.died.is_some() { "† " } else { "" };
///     println!("{:indent$}{mark}{} {name}", "", entry.process.id.pid, indent = 2 * entry.depth);
/// }
/// for loss in &report.losses {
///     eprintln!("not complete: {}", loss.advice());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error`]: what is missing here, or that there is no such process.
pub fn tree(root: Option<Root>) -> Result<TreeReport, Error> {
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let root = root.map(|root| root.find(&snapshot)).transpose()?;
    Ok(TreeReport {
        root,
        entries: tree::gather(&snapshot, root),
        since_ns: snapshot.since_ns,
        losses: snapshot.losses(),
    })
}

/// The orphans of the host or of a tree, at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OrphanReport {
    /// The orphans, oldest first.
    pub orphans: Vec<Orphan>,
    /// Since when the lineage is known, ns since boot.
    pub since_ns: u64,
    /// The losses that make the answer incomplete.
    pub losses: Vec<Loss>,
}

/// Finds what was left behind: living processes whose creator is dead, of the tree of `root` or of
/// the whole host, each with how it was left and the evidence for that.
///
/// Orphans that were to stay and those that are older than tracking are among them: only
/// [`Verdict::Leaked`](crate::Verdict::Leaked) may be killed without asking. Takes as long as
/// [`tree`]. No GPU driver is asked; open device files are looked at.
///
/// ```no_run
/// # fn main() -> Result<(), lifemon::Error> {
/// use lifemon::Verdict;
///
/// let mut report = lifemon::orphans(None)?;
/// // Those that were leaked, and that hold a GPU or below which one is held.
/// report.orphans.retain(|orphan| {
///     orphan.verdict == Verdict::Leaked && !orphan.subtree.gpu.is_empty()
/// });
/// for orphan in &report.orphans {
///     let creator = orphan.creator.as_ref().map_or("?".to_owned(), |creator| creator.to_string());
///     println!("{} was left behind by {creator}", orphan.process.id.pid);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`tree`].
pub fn orphans(root: Option<Root>) -> Result<OrphanReport, Error> {
    let mut tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let tree = root.map(|root| root.find(&snapshot)).transpose()?;
    let mut losses = snapshot.losses();
    let since_ns = snapshot.since_ns;
    let forest = Forest::new(snapshot.records);
    let scan = holders::scan(forest.all_living(), &DeviceFiles::default());
    if scan.unreadable > 0 {
        losses.push(Loss::Unreadable);
    }
    let known = Known {
        forest: &forest,
        subreapers: &tracker.subreapers()?,
        holders: &scan.holders,
    };
    let mut orphans = orphan::find(&known, tree);
    orphan::measure(&forest, &mut orphans);
    Ok(OrphanReport {
        orphans,
        since_ns,
        losses,
    })
}

//! What came of ending orphans: the kill, and what was spared, as text and as JSON.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::kill;
use super::out::printable;
use super::text;
use crate::kill::KillReport;
use crate::orphan::{Orphan, Verdict};
use crate::process::Who;
use crate::words::count;

/// Orphans that a question names.
const NAMED_MAX: usize = 20;

/// The outcome of ending orphans.
#[derive(Debug)]
pub struct Ended {
    /// The report of the kill; `None` if nothing was to be killed.
    pub report: Option<KillReport>,
    /// The orphans whose trees were killed, each with how many processes were below it.
    pub trees: Vec<(Who, usize)>,
    /// Orphans that were spared.
    pub spared: Vec<Spared>,
}

/// An orphan that was spared.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Spared {
    #[serde(flatten)]
    process: Who,
    /// How it was left.
    pub verdict: Verdict,
    reason: String,
}

impl Spared {
    /// Returns the orphan as spared for this reason.
    #[must_use]
    pub fn new(orphan: &Orphan, reason: String) -> Self {
        Self {
            process: orphan.process.who(),
            verdict: orphan.verdict,
            reason,
        }
    }
}

impl Ended {
    /// Returns the orphans whose trees were killed.
    pub(super) fn roots(&self) -> Vec<Who> {
        self.trees.iter().map(|(root, _)| root.clone()).collect()
    }

    /// Returns whether everything that was killed is dead and has released what it held.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.report.as_ref().is_none_or(KillReport::is_done)
    }
}

/// Returns what came of it, in words.
#[must_use]
pub fn text(ended: &Ended) -> String {
    let mut text = String::new();
    if ended.trees.len() > 1 {
        for (root, processes) in &ended.trees {
            let processes = count(*processes, "process");
            let _ = writeln!(text, "killed the tree of {}: {processes}", text::who(root));
        }
    }
    text.extend(ended.report.as_ref().map(|report| match ended.trees.len() {
        0 | 1 => kill::done(report),
        trees => kill::done_all(report, trees),
    }));
    let mut kinds: Vec<(&Spared, usize)> = Vec::new();
    for spared in &ended.spared {
        let is_like = |known: &&mut (&Spared, usize)| {
            (known.0.verdict, &known.0.reason) == (spared.verdict, &spared.reason)
        };
        match kinds.iter_mut().find(is_like) {
            Some((_, number)) => *number += 1,
            None => kinds.push((spared, 1)),
        }
    }
    for (spared, number) in kinds {
        let (verdict, reason) = (spared.verdict.word(), printable(&spared.reason));
        let _ = writeln!(text, "{number} spared: {verdict}; {reason}");
    }
    text
}

/// Returns what would be killed, and the question whether to.
#[must_use]
pub fn plan(orphans: &[&Orphan]) -> String {
    let mut text = String::new();
    for orphan in orphans.iter().take(NAMED_MAX) {
        let below = count(orphan.subtree.processes, "process");
        let _ = writeln!(
            text,
            "  {}  {} ({below})",
            orphan.verdict.word(),
            text::process(&orphan.process)
        );
    }
    if orphans.len() > NAMED_MAX {
        let _ = writeln!(text, "  and {} more", orphans.len() - NAMED_MAX);
    }
    let what = count(orphans.len(), "orphan");
    let _ = write!(text, "kill {what} with everything below? [y/N] ");
    text
}

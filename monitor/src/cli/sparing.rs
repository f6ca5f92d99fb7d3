//! What a kill spares, what it marks, and what it asks for before it begins: members that are to
//! stay (`--spare`), those that look deliberate, and clients of CUDA MPS (`--before-kill`).

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::str::FromStr;

use regex::bytes::Regex;

use super::NoSuchProcess;
use super::target::Target;
use crate::ProcessId;
use crate::forest::{Forest, walk};
use crate::gpu::mps;
use crate::kernel::Tracker;
use crate::kernel::snapshot::Snapshot;
use crate::orphan::{self, Known, Verdict};
use crate::proc;
use crate::process::Process;
use crate::report::kill::Marks;
use crate::report::out::printable;

/// Clients of CUDA MPS that a refusal names.
const NAMED_MAX: usize = 5;

/// Who is to be spared.
#[derive(Debug, Clone)]
pub(super) enum Spare {
    /// This process, with everything below it.
    Process(Target),
    /// Everybody whose name or command line matches, with everything below.
    Pattern(Regex),
}

impl FromStr for Spare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return text.parse().map(Self::Process);
        }
        let wrong = |error: regex::Error| {
            let error = error.to_string();
            error.lines().last().unwrap_or_default().to_owned()
        };
        Regex::new(text).map(Self::Pattern).map_err(wrong)
    }
}

/// Returns the living members of the tree of `root` that are to be spared. A pattern never means
/// the root itself, which was named to be killed.
///
/// # Errors
/// [`NoSuchProcess`] where one that was named by its pid is not there.
pub(super) fn spared(
    spares: &[Spare],
    root: ProcessId,
    snapshot: &Snapshot,
    forest: &Forest,
) -> Result<Vec<ProcessId>, NoSuchProcess> {
    let mut tops = Vec::new();
    for spare in spares {
        match spare {
            Spare::Process(target) => tops.push(target.find(snapshot)?),
            Spare::Pattern(pattern) => tops.extend(
                forest
                    .living(root)
                    .into_iter()
                    .filter(|id| *id != root && matches(pattern, *id, forest)),
            ),
        }
    }
    let below = walk(&tops, |id| forest.children(id)).into_iter();
    Ok(below
        .map(|(id, _)| id)
        .filter(|id| forest.is_live(id))
        .collect())
}

fn matches(pattern: &Regex, id: ProcessId, forest: &Forest) -> bool {
    let record = forest.record(&id);
    let name = record.and_then(|record| Process::of_record(id, record).name);
    let command = proc::command_line(id).unwrap_or_default();
    pattern.is_match(name.unwrap_or_default().as_bytes()) || pattern.is_match(&command.joined())
}

/// Returns what is said of the members of a tree before it is killed.
pub(super) fn marks(
    tracker: &mut Tracker,
    forest: &Forest,
    root: ProcessId,
    spared: &[ProcessId],
) -> anyhow::Result<Marks> {
    let known = Known {
        forest,
        subreapers: &tracker.subreapers()?,
        holders: &HashMap::new(),
    };
    let mut deliberate = HashMap::new();
    for id in forest.living(root) {
        if !forest.is_orphan(&id) {
            continue;
        }
        let orphan = orphan::of(&known, id);
        if let Some(orphan) = orphan.filter(|orphan| orphan.verdict == Verdict::Deliberate) {
            deliberate.insert(id, orphan.evidence);
        }
    }
    Ok(Marks {
        deliberate,
        mps_clients: mps_clients(forest, root, spared),
        spared: spared
            .iter()
            .filter_map(|id| Some(Process::of_record(*id, forest.record(id)?).who()))
            .collect(),
        not_shown: 0,
    })
}

/// Returns the members that are clients of CUDA MPS and would be killed.
pub(super) fn mps_clients(
    forest: &Forest,
    root: ProcessId,
    spared: &[ProcessId],
) -> HashSet<ProcessId> {
    let living = forest.living(root).into_iter();
    living
        .filter(|id| !spared.contains(id) && mps::is_client(*id))
        .collect()
}

/// Some that would die are clients of CUDA MPS: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} would die as a client of CUDA MPS: with work under way that can take down other clients; \
     nothing was killed; end its work first (--before-kill COMMAND does that), or kill it all the \
     same with --force"
)]
pub struct MpsClients(String);

/// Checks that no client of CUDA MPS would be killed unasked.
///
/// # Errors
/// [`MpsClients`].
pub(super) fn check_mps(clients: &HashSet<ProcessId>, forest: &Forest) -> Result<(), MpsClients> {
    if clients.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<_> = clients.iter().copied().collect();
    ids.sort_unstable();
    let mut names: Vec<_> = ids
        .iter()
        .take(NAMED_MAX)
        .map(|id| {
            let record = forest.record(id);
            let name = record.and_then(|record| Process::of_record(*id, record).name);
            format!("{} {}", id.pid, printable(&name.unwrap_or_default()))
        })
        .collect();
    if ids.len() > NAMED_MAX {
        names.push(format!("{} more", ids.len() - NAMED_MAX));
    }
    Err(MpsClients(names.join(", ")))
}

/// Runs the user's own remedy before a kill: by a shell, with the root and its living members in
/// the environment.
///
/// # Errors
/// When it does not start or fails: then nothing is to be killed.
pub(super) fn before_kill(remedy: &str, root: ProcessId, forest: &Forest) -> anyhow::Result<()> {
    let pids: Vec<_> = forest
        .living(root)
        .iter()
        .map(|id| id.pid.to_string())
        .collect();
    let status = Command::new("sh")
        .args(["-c", remedy])
        .env("LIFEMON_ROOT", format!("{}@{}", root.pid, root.start_ns))
        .env("LIFEMON_PIDS", pids.join(" "))
        .status()?;
    anyhow::ensure!(
        status.success(),
        "the command before the kill has failed ({status}): nothing was killed"
    );
    Ok(())
}

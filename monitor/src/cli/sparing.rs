//! What a kill spares, and what it asks for before it begins: members that are to stay (`--spare`),
//! and clients of CUDA MPS (`--before-kill`).

use std::process::Command;
use std::str::FromStr;

use regex::bytes::Regex;

use super::NoSuchProcess;
use super::target::Target;
use crate::ProcessId;
use crate::forest::{Forest, walk};
use crate::kernel::snapshot::Snapshot;
use crate::kill::marks::MpsClients;
use crate::proc;
use crate::process::Process;
use crate::report::out::printable;

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

/// Some that would die are clients of CUDA MPS: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{} (--force, or --before-kill COMMAND)", printable(&.0.to_string()))]
pub struct Unasked(MpsClients);

/// Returns the members of a tree that are clients of CUDA MPS and would be killed.
pub(super) fn mps_clients(forest: &Forest, root: ProcessId, spared: &[ProcessId]) -> MpsClients {
    MpsClients::find(forest, root, |id| !spared.contains(&id))
}

/// Checks that no client of CUDA MPS would be killed unasked.
///
/// # Errors
/// [`Unasked`].
pub(super) fn check_mps(clients: MpsClients) -> Result<(), Unasked> {
    clients.check().map_err(Unasked)
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

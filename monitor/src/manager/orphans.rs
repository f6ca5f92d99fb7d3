//! Orphans: what workers have left, and the tree kill for one process.

use std::fs;
use std::io;

use serde_json::Value;

use super::ProcessManager;
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::Holders;
use crate::kernel::{LoadOptions, Tracker};
use crate::kill::{KillError, KillOptions, KillReport, kill_tree};
use crate::orphan::{self, Wanted};
use crate::proc;
use crate::supervise::ending::process;

/// Whose orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Those of this manager's workers.
    #[default]
    Own,
    /// Also those whose creator was not of this manager and is dead. Needs the host's tracker
    /// (`lifemon track on`): nothing else knows who they belonged to. What was made a daemon on
    /// purpose is left alone.
    DeadServers,
}

/// An orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Its identity.
    pub id: ProcessId,
    /// Its command line when it was found.
    pub command_line: String,
    /// How many processes died: it, and what was below it.
    pub killed: usize,
}

impl Cleaned {
    pub(super) fn to_value(&self) -> Value {
        let name = self.command_line.split(' ').next().unwrap_or_default();
        process(self.id, Some(name.to_owned()))
    }
}

impl ProcessManager {
    /// Orphans of this manager's trees: whatever is below the guardian without being a worker.
    #[must_use]
    pub fn orphans(&self) -> Vec<Cleaned> {
        let (guardian, workers, known) = {
            let inner = self.shared.lock();
            let workers: Vec<_> = inner
                .workers
                .iter()
                .filter_map(|worker| worker.id)
                .collect();
            let known: Vec<_> = inner.orphans.iter().map(|who| who.id).collect();
            (inner.guardian, workers, known)
        };
        let Some(guardian) = guardian else {
            return Vec::new();
        };
        let children = children(guardian).into_iter().filter_map(proc::identify);
        let mut found: Vec<_> = children
            .filter(|id| !workers.iter().any(|worker| worker.pid == id.pid))
            .collect();
        // Below a subreaper among the workers, only the tracker knows them.
        let hidden = known
            .into_iter()
            .filter(|id| !found.iter().any(|other| other.pid == id.pid));
        found.extend(hidden.collect::<Vec<_>>());
        let alive = found.into_iter().filter(|id| proc::is_alive(*id));
        alive
            .map(|id| Cleaned {
                id,
                command_line: command_line(id.pid),
                killed: 0,
            })
            .collect()
    }

    /// Kills orphans whose command line contains one of the patterns, each with what is below it.
    /// Processes that have a living creator are never hit, whatever their name.
    ///
    /// # Errors
    /// For [`Scope::DeadServers`], when the host's tracker is off or a kill fails.
    pub async fn cleanup_orphans(
        &self,
        patterns: &[impl AsRef<str>],
        scope: Scope,
    ) -> io::Result<Vec<Cleaned>> {
        let fits = |line: &str| {
            let mut patterns = patterns.iter().map(AsRef::as_ref);
            patterns.any(|pattern| !pattern.is_empty() && line.contains(pattern))
        };
        let mut cleaned = Vec::new();
        for mut orphan in self.orphans() {
            if fits(&orphan.command_line) {
                orphan.killed = self.kill_below(orphan.id.pid).await;
                cleaned.push(orphan);
            }
        }
        if scope == Scope::DeadServers {
            for mut orphan in dead_servers_orphans()? {
                if !fits(&orphan.command_line) {
                    continue;
                }
                match kill_exactly(orphan.id).await {
                    Ok(report) => orphan.killed = report.killed.len(),
                    // It ended by itself, or was below one that has just been killed.
                    Err(KillError::Kernel(crate::kernel::Error::NoProcess(_))) => continue,
                    Err(error) => return Err(io::Error::other(error)),
                }
                cleaned.push(orphan);
            }
        }
        Ok(cleaned)
    }

    /// Kills a process and everything that descends from it, exactly, and nobody else. With
    /// privileges any process; without them what is below the guardian.
    ///
    /// # Errors
    /// [`KillError`]. Without privileges, when nothing with this pid is below the guardian.
    pub async fn kill_process_tree(&self, pid: u32) -> Result<usize, KillError> {
        let refusal = match crate::kernel::preflight::check() {
            Ok(()) => {
                let id = proc::identify(pid);
                let id = id.ok_or_else(|| crate::kernel::Error::NoProcess(pid.to_string()))?;
                return Ok(kill_exactly(id).await?.killed.len());
            }
            Err(refusal) => refusal,
        };
        match self.kill_below(pid).await {
            0 => Err(KillError::Kernel(refusal.into())),
            count => Ok(count),
        }
    }
}

/// The exact kill, in a thread of its own: it is not for threads that serve others.
async fn kill_exactly(id: ProcessId) -> Result<KillReport, KillError> {
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(crate::kernel::Error::Map)?;
        let tracker = Tracker::open_or_load(&LoadOptions::default())?;
        let snapshot = tracker.snapshot()?;
        let root = snapshot.live(id.pid).map(|(id, _)| *id);
        let root = root.filter(|_| proc::is_same(id));
        let root = root.ok_or_else(|| crate::kernel::Error::NoProcess(id.pid.to_string()))?;
        runtime.block_on(kill_tree(tracker, root, &KillOptions::default()))
    };
    let done = tokio::task::spawn_blocking(body).await;
    done.unwrap_or_else(|error| Err(crate::kernel::Error::Map(io::Error::other(error)).into()))
}

fn dead_servers_orphans() -> io::Result<Vec<Cleaned>> {
    let tracker = Tracker::open().map_err(io::Error::other)?;
    let tracker = tracker.ok_or_else(|| {
        io::Error::other("the host's tracker is off: `lifemon track on` keeps who belongs to whom")
    })?;
    let snapshot = tracker.snapshot().map_err(io::Error::other)?;
    let forest = Forest::new(snapshot.records);
    let orphans = orphan::find(&forest, &Wanted::default(), &Holders::default());
    let certain = orphans
        .into_iter()
        .filter(|orphan| orphan.class.is_certain());
    Ok(certain
        .map(|orphan| Cleaned {
            id: orphan.process.id,
            command_line: orphan.command.to_strings().join(" "),
            killed: 0,
        })
        .collect())
}

/// The words of a process, with spaces between.
fn command_line(pid: u32) -> String {
    let command = proc::command_line_of(pid).unwrap_or_default();
    command.to_strings().join(" ").trim_end().to_owned()
}

/// Children of a process with one thread.
fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.unwrap_or_default();
    listed
        .split_ascii_whitespace()
        .flat_map(str::parse)
        .collect()
}

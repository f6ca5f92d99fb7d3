//! Orphans: what workers have left, and the tree kill for one process.

use std::fmt;
use std::io;

use super::ProcessManager;
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::Holders;
use crate::kernel::Tracker;
use crate::kill::{KillError, KillReport, Survivor, kill_on_a_thread};
use crate::orphan::{self, Known, Verdict};
use crate::proc;
use crate::process::{Who, is_same_process, may_be_same_process};

/// The trees whose orphans are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Scope {
    /// Those of this manager's workers.
    #[default]
    Own,
    /// Also those whose creator was not of this manager and is dead. Needs the host's tracker
    /// (`lifemon track on`): nothing else knows who they belonged to. Only what was leaked is
    /// meant: its creator, or the root of its tree, was killed or has failed.
    DeadServers,
}

/// An orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleaned {
    /// Its identity.
    pub id: ProcessId,
    /// Its command line when it was found.
    pub command_line: String,
    /// Number of processes that died: it, and what was below it.
    pub killed: usize,
}

/// The reason why a tree was not killed, or not all of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeKillError {
    /// It was not killed.
    #[error(transparent)]
    NotKilled(#[from] KillError),
    /// Some of it cannot die.
    #[error("killed {killed}, and these are left: {survivors}", survivors = Survivors(.survivors))]
    Survivors {
        /// Number of processes that died.
        killed: usize,
        /// The survivors, each with the reason.
        survivors: Vec<Survivor>,
    },
}

/// `77 python (uninterruptible (state D)), 78 (stopped)`.
pub(super) struct Survivors<'a>(pub(super) &'a [Survivor]);

impl fmt::Display for Survivors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let survivors = self.0.iter().map(|survivor| {
            let process = &survivor.process;
            let name = process.name.as_deref().unwrap_or("?");
            let reason = survivor.reason.as_deref().unwrap_or("kept");
            format!("{} {name} ({reason})", process.id.pid)
        });
        f.write_str(&survivors.collect::<Vec<_>>().join(", "))
    }
}

impl Cleaned {
    /// Returns its identity, named by the first word of its command line.
    pub(super) fn who(&self) -> Who {
        let name = self.command_line.split(' ').next().unwrap_or_default();
        Who {
            id: self.id,
            name: Some(name.into()),
        }
    }
}

impl ProcessManager {
    /// Lists the orphans of this manager's trees: whatever is below the guardian without being a
    /// worker.
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
        let children = proc::children(guardian)
            .unwrap_or_default()
            .into_iter()
            .filter_map(proc::identify);
        // A worker that was hidden when it was started is none of them either.
        let is_worker = |id| {
            workers
                .iter()
                .any(|worker| may_be_same_process(*worker, id))
        };
        let mut found: Vec<_> = children.filter(|id| !is_worker(*id)).collect();
        // Below a subreaper among the workers, only the tracker knows them.
        let hidden = known
            .into_iter()
            .filter(|id| !found.iter().any(|other| is_same_process(*other, *id)));
        found.extend(hidden.collect::<Vec<_>>());
        let alive = found.into_iter().filter(|id| proc::is_live(*id));
        alive
            .map(|id| Cleaned {
                id,
                command_line: command_line(id.pid),
                killed: 0,
            })
            .collect()
    }

    /// Kills orphans whose command line contains one of the patterns, each with what is below it.
    /// Processes that have a living creator are never hit, whatever their name. Those that cannot
    /// be killed are in the log, and not in the list.
    ///
    /// # Errors
    /// For [`Scope::DeadServers`], when the host's tracker is off.
    pub async fn cleanup_orphans(
        &self,
        patterns: &[impl AsRef<str>],
        scope: Scope,
    ) -> io::Result<Vec<Cleaned>> {
        let fits = |orphan: &Cleaned| {
            let mut patterns = patterns.iter().map(AsRef::as_ref);
            patterns.any(|part| !part.is_empty() && orphan.command_line.contains(part))
        };
        // Before anything is killed: an error means that nothing was.
        let others = match scope {
            Scope::Own => Vec::new(),
            Scope::DeadServers => dead_servers_orphans()?,
        };
        let mut cleaned = self.orphans();
        cleaned.retain(fits);
        for orphan in &mut cleaned {
            orphan.killed = self.kill_below(orphan.id).await.killed.len();
        }
        for mut orphan in others.into_iter().filter(fits) {
            orphan.killed = kill_orphan(&orphan).await;
            cleaned.push(orphan);
        }
        cleaned.retain(|orphan| orphan.killed > 0);
        Ok(cleaned)
    }

    /// Kills a process and all its descendants, and nobody else. With privileges any process;
    /// without them what is below the guardian.
    ///
    /// # Errors
    /// [`TreeKillError`]. Without privileges, when nothing with this pid is below the guardian.
    pub async fn kill_process_tree(&self, pid: u32) -> Result<usize, TreeKillError> {
        let id = proc::identify(pid).ok_or_else(|| nobody(pid))?;
        let refusal = match crate::kernel::preflight::check() {
            Ok(()) => return count(kill_on_a_thread(id, Vec::new()).await?),
            Err(refusal) => refusal,
        };
        match self.kill_below(id).await.killed.len() {
            0 => Err(KillError::Kernel(refusal.into()).into()),
            count => Ok(count),
        }
    }
}

fn nobody(pid: u32) -> KillError {
    crate::kernel::Error::NoProcess(pid.to_string()).into()
}

/// Returns the number of processes that were killed; an error if there are survivors.
fn count(report: KillReport) -> Result<usize, TreeKillError> {
    let killed = report.outcome.killed.len();
    if report.is_done() {
        return Ok(killed);
    }
    Err(TreeKillError::Survivors {
        killed,
        survivors: report.outcome.survivors,
    })
}

/// Kills an orphan's tree; returns how many processes. The other orphans do not depend on it.
async fn kill_orphan(orphan: &Cleaned) -> usize {
    let killed = match kill_on_a_thread(orphan.id, Vec::new()).await {
        Ok(report) => count(report),
        // It ended by itself, or was below one that has just been killed.
        Err(KillError::Kernel(crate::kernel::Error::NoProcess(_))) => Ok(0),
        Err(error) => Err(error.into()),
    };
    killed.unwrap_or_else(|error| {
        log::warn!("the orphan {} was not cleaned up: {error}", orphan.id.pid);
        match error {
            TreeKillError::Survivors { killed, .. } => killed,
            TreeKillError::NotKilled(_) => 0,
        }
    })
}

fn dead_servers_orphans() -> io::Result<Vec<Cleaned>> {
    let tracker = Tracker::open().map_err(io::Error::other)?;
    let mut tracker = tracker.ok_or_else(|| {
        io::Error::other("the host's tracker is off: `lifemon track on` keeps who belongs to whom")
    })?;
    let snapshot = tracker.snapshot().map_err(io::Error::other)?;
    let forest = Forest::new(snapshot.records);
    let known = Known {
        forest: &forest,
        subreapers: &tracker.subreapers().map_err(io::Error::other)?,
        holders: &Holders::default(),
    };
    let orphans = orphan::find(&known, None).into_iter();
    let leaked = orphans.filter(|orphan| orphan.verdict == Verdict::Leaked);
    Ok(leaked
        .map(|orphan| Cleaned {
            id: orphan.process.id,
            command_line: orphan.command.to_strings().join(" "),
            killed: 0,
        })
        .collect())
}

/// Returns the words of a process, with spaces between.
fn command_line(pid: u32) -> String {
    let command = proc::command_line_of(pid).unwrap_or_default();
    command.to_strings().join(" ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kill::{Killed, Outcome};
    use crate::process::Process;

    #[test]
    fn who_has_survived_a_kill_is_named() {
        let process = |pid| Process::unknown(ProcessId::new(pid, 5));
        let mut outcome = Outcome::default();
        outcome.add_killed([Killed::new(process(77), None)]);
        let survivor = Survivor::new(process(78), Some("stopped".to_owned()));
        outcome.survivors.push(survivor);
        let mut report = KillReport {
            root: process(77),
            members: Vec::new(),
            outcome,
            others: 0,
            rejected: 0,
            extinct: false,
            losses: Vec::new(),
            suspects: Vec::new(),
            accepts_suspects: false,
            elapsed: Duration::ZERO,
            gone: None,
            release: None,
        };
        let error = count(report.clone()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "killed 1, and these are left: 78 ? (stopped)"
        );
        report.outcome.survivors.clear();
        report.extinct = true;
        assert_eq!(count(report).unwrap(), 1);
    }
}

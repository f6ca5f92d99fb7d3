//! Waits for the end of processes, each stage of it by its name: for the command line, and for the
//! callers of the agent.

use std::collections::HashSet;
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use crate::forest::{Forest, walk};
use crate::gpu::nvml::Server;
use crate::gpu::release::{News, Releases};
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Error, Tracker, WatchOptions, clock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Death, Process};
use crate::session::{Session, Update};
use crate::watch::What;

/// Interval at which a process that has died is asked whether it is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(20);

/// Longest time to wait for a driver.
const DRIVER_LIMIT: Duration = Duration::from_hours(24);

/// A condition to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "agent", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Nothing of the trees can run again
    Extinct,
    /// A process of the trees has died
    AnyExit,
    /// The named processes are gone: memory and files released, children reparented
    Gone,
    /// The trees are gone, and no driver accounts GPU memory to them any more
    Released,
}

impl Until {
    /// Returns the word of the JSON output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Extinct => "extinct",
            Self::AnyExit => "any_exit",
            Self::Gone => "gone",
            Self::Released => "released",
        }
    }
}

/// The end of a wait.
#[derive(Debug)]
pub struct Waited {
    /// The condition.
    pub until: Until,
    /// True if it came.
    pub holds: bool,
    /// The processes that were named.
    pub targets: Vec<Process>,
    /// The first that has died, where that was waited for, and how.
    pub died: Option<(Process, Option<Death>)>,
    /// Processes of the trees that are alive.
    pub alive: u64,
    /// A reason why it will not come.
    pub trouble: Option<String>,
    /// The time that it took.
    pub elapsed: Duration,
    /// The losses.
    pub losses: Vec<Loss>,
}

/// A wait under way.
pub struct Waiting {
    until: Until,
    begun: Instant,
    /// The processes that were named.
    targets: Vec<Process>,
    /// Their trees, watched as one; `None` where nothing of them is alive.
    session: Option<Session>,
    /// Of the named, those that are not known to be gone yet.
    not_gone: Vec<ProcessId>,
    /// The first process that has died, or one of the named that was dead when the watching began.
    died: Option<(Process, Option<Death>)>,
    releases: Option<Releases>,
    trouble: Option<String>,
}

impl Waiting {
    /// Begins to watch what is alive of the trees of these processes. `has_gpus` where a driver is
    /// to be asked what it has released.
    ///
    /// # Errors
    /// When the trees cannot be watched.
    pub fn begin(
        tracker: Tracker,
        snapshot: &Snapshot,
        ids: Vec<ProcessId>,
        until: Until,
        has_gpus: bool,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let forest = Forest::new(snapshot.records.iter().copied());
        // One without a record has ended since it was found, and nothing is left of its tree.
        let described = ids.iter().map(|id| {
            let record = forest.record(id);
            record.map_or_else(
                || Process::unknown(*id),
                |record| Process::of_record(*id, record),
            )
        });
        let targets: Vec<_> = described.collect();
        let session = watch(tracker, &tops(&forest, &ids))?;
        let is_watched = |id: &ProcessId| {
            let session = session.as_ref();
            session.is_some_and(|session| session.watch().is_live(id))
        };
        let dead = targets.iter().find(|process| !is_watched(&process.id));
        let died = dead.map(|process| {
            let record = forest.record(&process.id);
            let death = record.filter(|_| forest.is_dead(&process.id));
            (process.clone(), death.map(Death::of_record))
        });
        let follow = || Releases::follow(Server::of_this_program(), DRIVER_LIMIT);
        let follows = until == Until::Released && has_gpus;
        let releases = follows.then(follow);
        if let Some(releases) = &releases {
            // Who has died before the watching began is reported by nobody, and its driver may
            // still be taking its memory back.
            let all = living(&forest, &ids).chain(ids.iter().copied());
            let all: HashSet<_> = all.filter(|id| !is_watched(id)).collect();
            for id in all {
                releases.died(id, clock::boot_ns());
            }
        }
        Ok(Self {
            until,
            begun,
            targets,
            session,
            not_gone: ids,
            died,
            releases,
            trouble: None,
        })
    }

    /// Waits until the condition holds; false where the time is over first, or it never will be
    /// known.
    ///
    /// # Errors
    /// When the trees cannot be watched any more.
    pub async fn holds(&mut self, limit: Option<Duration>) -> Result<bool, Error> {
        match limit {
            Some(limit) => {
                let deadline = self.begun + limit;
                let held = timeout_at(deadline, self.hold()).await;
                held.unwrap_or(Ok(false))
            }
            None => self.hold().await,
        }
    }

    async fn hold(&mut self) -> Result<bool, Error> {
        if self.until == Until::AnyExit && self.died.is_some() {
            return Ok(true);
        }
        loop {
            self.not_gone.retain(|id| !proc::is_gone(*id));
            if self.until == Until::Gone && self.not_gone.is_empty() {
                return Ok(true);
            }
            let Some(session) = &mut self.session else {
                match self.until {
                    Until::Gone => sleep(GONE_INTERVAL).await,
                    Until::Released => return Ok(self.released().await),
                    Until::Extinct | Until::AnyExit => return Ok(true),
                }
                continue;
            };
            let has_dying = self.not_gone.iter().any(|id| !session.watch().is_live(id));
            let updates = tokio::select! {
                updates = session.next() => updates?,
                () = sleep(GONE_INTERVAL), if has_dying => continue,
            };
            if self.apply(&updates) {
                return Ok(true);
            }
        }
    }

    /// Takes note of what has happened; returns whether the condition holds.
    fn apply(&mut self, updates: &[Update]) -> bool {
        for update in updates {
            match update {
                Update::Happening(happening) => {
                    let What::Exit { death, .. } = &happening.what else {
                        continue;
                    };
                    let process = &happening.process;
                    if let Some(releases) = &self.releases {
                        let at_ns = happening.at_ns.unwrap_or_else(clock::boot_ns);
                        releases.died(process.id, at_ns);
                    }
                    if self.until == Until::AnyExit {
                        self.died = Some((process.clone(), death.clone()));
                        return true;
                    }
                }
                Update::Extinct if self.until == Until::Extinct => return true,
                Update::End => {
                    self.session = None;
                    if self.until == Until::Extinct {
                        return true;
                    }
                }
                Update::Extinct | Update::Lost { .. } => {}
            }
        }
        false
    }

    /// Waits until no driver accounts memory to the dead any more.
    async fn released(&mut self) -> bool {
        let Some(releases) = &mut self.releases else {
            return true;
        };
        releases.close();
        while let Some(news) = releases.next().await {
            match news {
                News::Released { .. } => {}
                News::StillHeld { id, state, .. } => {
                    self.trouble = Some(format!("GPU memory is still held by {}: {state}", id.pid));
                }
                News::Hung => {
                    self.trouble = Some("the driver of the GPUs does not answer".to_owned());
                }
                News::Failed(why) => {
                    self.trouble = Some(format!("the driver of the GPUs does not say: {why}"));
                }
            }
        }
        self.trouble.is_none()
    }

    /// Ends the wait, and returns what it has come to.
    #[must_use]
    pub fn end(self, holds: bool) -> Waited {
        let session = self.session.as_ref();
        Waited {
            until: self.until,
            holds,
            alive: session.map_or(0, |session| session.watcher().counters().live),
            losses: session.map_or_else(Vec::new, |session| session.standing_losses().to_vec()),
            died: self.died,
            trouble: self.trouble,
            elapsed: self.begun.elapsed(),
            targets: self.targets,
        }
    }
}

/// Returns what is alive of the trees of these processes, each once.
fn living(forest: &Forest, ids: &[ProcessId]) -> impl Iterator<Item = ProcessId> {
    let trees = walk(ids, |id| forest.children(id)).into_iter();
    trees.map(|(id, _)| id).filter(|id| forest.is_live(id))
}

/// Returns the roots to watch for these processes: a tree whose root has died is what is alive of
/// it.
fn tops(forest: &Forest, ids: &[ProcessId]) -> Vec<ProcessId> {
    let (alive, dead): (Vec<_>, Vec<_>) = ids.iter().partition(|id| forest.is_live(id));
    let mut seen = HashSet::new();
    let mut tops: Vec<_> = alive.into_iter().chain(living(forest, &dead)).collect();
    tops.retain(|id| seen.insert(*id));
    tops
}

/// Watches trees as one; `None` where nothing is left of any.
///
/// Race: a root can die since the snapshot, in which it lives. As long as something below it lives,
/// its ghost stands for it. Only the end of a process takes its record: where there is none any
/// more, nothing of its tree can run again, and the others are watched without it, by the same
/// tracker: what descends through the dead is known to nobody else.
fn watch(tracker: Tracker, roots: &[ProcessId]) -> Result<Option<Session>, Error> {
    let begun = Session::start_any(tracker, roots, &WatchOptions::default())?;
    Ok(begun.map(|(session, _)| session))
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::{DEAD, LIVE, Record};

    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId::new(pid, u64::from(pid))
    }

    /// Makes a chain of processes, each created by the one before; the first is dead.
    fn chain(length: u32) -> Forest {
        let record = |pid| Record {
            creator: if pid == 1 {
                ProcessId::NONE
            } else {
                id(pid - 1)
            },
            state: if pid == 1 { DEAD } else { LIVE },
            ..Record::default()
        };
        Forest::new((1..=length).map(|pid| (id(pid), record(pid))))
    }

    #[test]
    fn the_dead_are_watched_by_what_is_alive_of_them() {
        let forest = chain(4);
        assert_eq!(tops(&forest, &[id(1), id(3)]), [3, 2, 4].map(id));
        assert_eq!(tops(&forest, &[id(2), id(2)]), [id(2)]);
        assert_eq!(tops(&forest, &[id(9)]), []);
        let alive: Vec<_> = living(&forest, &[id(1), id(3)]).collect();
        assert_eq!(alive, [2, 3, 4].map(id));
    }

    #[test]
    fn a_long_chain_is_walked_once() {
        const LENGTH: u32 = 10_000;
        let forest = chain(LENGTH);
        let all: Vec<_> = (1..=LENGTH).map(id).collect();
        let begun = Instant::now();
        for ids in [&all[..1], &all] {
            assert_eq!(tops(&forest, ids).len(), all.len() - 1);
            assert_eq!(living(&forest, ids).count(), all.len() - 1);
        }
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_condition_has_one_word_in_json() {
        let all = [Until::Extinct, Until::AnyExit, Until::Gone, Until::Released];
        for until in all {
            assert_eq!(serde_json::to_value(until).unwrap(), until.word());
        }
    }
}

//! The state of a manager's workers, shared between the server's threads and the monitor. The
//! healthy path reads one atomic word.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::health::{DeadWorker, Health, HealthStatus, WorkersDied};
use crate::ProcessId;
use crate::kernel::clock::WallClock;
use crate::kill::{Rest, Way};
use crate::loss::{Incomplete, Loss};
use crate::process::{Death, Who};

/// The time before its own stop signal in which a dead worker counts as asked to end. A service
/// manager or a shell that ends a server with all of its workers signals one after the other, so
/// the first of them can be dead before the server has noticed its own signal.
const TOGETHER: Duration = Duration::from_millis(200);

/// The kind of shutdown that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Stop {
    /// Not at all.
    #[default]
    No,
    /// Workers may finish.
    Graceful,
    /// Everything ends now.
    Now,
}

/// The state that waiters observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Change {
    /// Dead workers.
    pub(super) dead: usize,
    /// The kind of shutdown that was asked for.
    pub(super) stop: Stop,
    /// Those who were dead before it was: the others are meant to end.
    pub(super) dead_before_stop: usize,
    /// True if a signal has asked for it.
    is_signalled: bool,
    /// Nothing below this manager is left, or nobody can end it any more.
    pub(super) has_ended: bool,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: Option<ProcessId>,
    pub(super) death: Option<DeadWorker>,
    /// The source of the knowledge of the death.
    known: Known,
    /// Time of the death.
    buried: Option<Instant>,
}

/// The knowledge of a death, least first. More replaces less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Nothing,
    Fact,
    Status,
    Event,
}

/// The source of a worker's death, least exact first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Report<'a> {
    /// It is dead, and why that is so.
    Fact(&'a str),
    /// Its status, from its parent.
    Status(&'a Death),
    /// Its event, which also knows who did it.
    Event(&'a Death),
}

impl<'a> Report<'a> {
    /// Returns the report of an event. Where that has no facts, only that it came is known.
    pub(super) fn of_event(death: Option<&'a Death>) -> Self {
        death.map_or(Self::Fact("not known"), Self::Event)
    }

    const fn known(self) -> Known {
        match self {
            Self::Status(death) | Self::Event(death) if death.unseen => Known::Fact,
            Self::Fact(_) => Known::Fact,
            Self::Status(_) => Known::Status,
            Self::Event(_) => Known::Event,
        }
    }

    fn cause(self) -> String {
        match self {
            Self::Fact(cause) => cause.to_owned(),
            Self::Status(death) | Self::Event(death) => death.to_string(),
        }
    }

    fn death(self) -> Option<Death> {
        match self {
            Self::Fact(_) => None,
            Self::Status(death) | Self::Event(death) => Some(death.clone()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) workers: Vec<Worker>,
    pub(super) orphans: Vec<Who>,
    pub(super) way: Way,
    pub(super) incomplete: Vec<Incomplete>,
    pub(super) rest: Option<Rest>,
    pub(super) guardian: Option<u32>,
}

/// The state.
#[derive(Debug)]
pub(super) struct Shared {
    dead: AtomicUsize,
    inner: Mutex<Inner>,
    changes: watch::Sender<Change>,
    label: String,
    clock: WallClock,
}

impl Shared {
    pub(super) fn new(workers: usize, label: String) -> Self {
        let worker = |_| Worker {
            id: None,
            death: None,
            known: Known::Nothing,
            buried: None,
        };
        Self {
            dead: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                workers: (0..workers).map(worker).collect(),
                orphans: Vec::new(),
                way: Way::Subreaper,
                incomplete: vec![Loss::NoTracker.into()],
                rest: None,
                guardian: None,
            }),
            changes: watch::Sender::new(Change::default()),
            label,
            clock: WallClock::now(),
        }
    }

    /// Locks the state, which is whole at any time: a panic elsewhere does not spoil it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<Change> {
        self.changes.subscribe()
    }

    pub(super) fn change(&self) -> Change {
        *self.changes.borrow()
    }

    pub(super) fn workers(&self) -> usize {
        self.lock().workers.len()
    }

    /// Checks that all workers live: one atomic load where they do.
    pub(super) fn check(&self) -> Result<(), WorkersDied> {
        if self.dead.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let inner = self.lock();
        let dead = inner.workers.iter();
        Err(WorkersDied {
            label: self.label.clone(),
            dead: dead.filter_map(|worker| worker.death.clone()).collect(),
        })
    }

    /// Records that a worker is dead. It dies once; later sources may add to what is known of it.
    pub(super) fn bury(&self, index: usize, at_ns: u64, report: Report<'_>) {
        let mut inner = self.lock();
        let Some(worker) = inner.workers.get_mut(index) else {
            return;
        };
        if report.known() <= worker.known {
            return;
        }
        worker.known = report.known();
        let since = worker.death.take().map(|death| death.since);
        let is_new = since.is_none();
        worker.buried.get_or_insert_with(Instant::now);
        worker.death = Some(DeadWorker {
            index,
            process: worker.id.map(|id| Who { id, name: None }),
            cause: report.cause(),
            death: report.death(),
            since: since.unwrap_or_else(|| self.clock.rfc3339(at_ns)),
        });
        // Who is woken by the count may hold the channel while it waits for this lock.
        drop(inner);
        if is_new {
            self.count();
        }
    }

    /// Counts a dead worker: after the facts, so whoever sees the count sees them.
    fn count(&self) {
        let dead = self.dead.fetch_add(1, Ordering::AcqRel) + 1;
        self.changes.send_modify(|change| change.dead = dead);
    }

    /// Notes how far a shutdown was asked for.
    pub(super) fn ask_to_stop(&self, stop: Stop) {
        self.changes.send_modify(|change| {
            if change.stop == Stop::No {
                change.dead_before_stop = change.dead;
            }
            change.stop = change.stop.max(stop);
        });
    }

    /// Notes a signal that came now. Only the first one can excuse a death.
    pub(super) fn take_signal(&self, stop: Stop, now: Instant) {
        let was_dead = |buried: Instant| now.saturating_duration_since(buried) > TOGETHER;
        let dead_before = {
            let inner = self.lock();
            let buried = inner.workers.iter().filter_map(|worker| worker.buried);
            buried.filter(|buried| was_dead(*buried)).count()
        };
        self.ask_to_stop(stop);
        self.changes.send_modify(|change| {
            if !change.is_signalled {
                change.dead_before_stop = change.dead_before_stop.min(dead_before);
                change.is_signalled = true;
            }
        });
    }

    pub(super) fn end(&self) {
        self.changes.send_modify(|change| change.has_ended = true);
    }

    pub(super) fn health(&self) -> HealthStatus {
        let died = self.check().err();
        let inner = self.lock();
        let causes = died.as_ref().map(|died| died.dead.clone());
        let causes = causes.unwrap_or_default();
        HealthStatus {
            status: if died.is_some() {
                Health::Unhealthy
            } else {
                Health::Ok
            },
            dead_workers: causes.iter().map(|dead| dead.index).collect(),
            message: died.map(|died| died.to_string()),
            causes,
            orphans: inner.orphans.clone(),
            gpu: Vec::new(),
            way: inner.way,
            complete: inner.incomplete.is_empty(),
            incomplete: inner.incomplete.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed() -> Death {
        Death::from_wait_status(9)
    }

    #[test]
    fn the_message_is_that_of_the_module_that_this_replaces() {
        let shared = Shared::new(3, "vLLM".to_owned());
        assert!(shared.check().is_ok());
        shared.bury(0, 5, Report::Status(&killed()));
        shared.bury(2, 5, Report::Status(&killed()));
        let error = shared.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "vLLM worker(s) [0, 2] died. Restart the server to recover."
        );
        assert_eq!(error.dead[0].cause, "SIGKILL");
    }

    #[test]
    fn a_worker_dies_once_and_an_event_adds_what_it_knows() {
        let shared = Shared::new(2, "vLLM".to_owned());
        shared.bury(1, 5, Report::Status(&killed()));
        let oom = Death {
            is_oom: true,
            ..killed()
        };
        shared.bury(1, 9, Report::Event(&oom));
        shared.bury(1, 9, Report::Status(&killed()));
        assert_eq!(shared.change().dead, 1);
        let health = shared.health();
        assert_eq!(health.causes[0].cause, "out of memory (SIGKILL)");
    }

    #[test]
    fn a_status_says_more_than_the_fact_and_another_fact_says_no_more() {
        let shared = Shared::new(2, "vLLM".to_owned());
        shared.bury(0, 5, Report::Fact("could not be started"));
        shared.bury(0, 9, Report::Fact("the guardian is gone"));
        shared.bury(1, 5, Report::of_event(None));
        shared.bury(1, 9, Report::Status(&killed()));
        assert_eq!(shared.change().dead, 2);
        let causes = shared.health().causes;
        assert_eq!(causes[0].cause, "could not be started");
        assert_eq!(causes[1].cause, "SIGKILL");
        assert!(causes[1].death.is_some());
    }

    #[test]
    fn who_dies_after_the_stop_was_asked_for_is_meant_to() {
        let shared = Shared::new(2, "vLLM".to_owned());
        shared.bury(0, 5, Report::Status(&killed()));
        shared.ask_to_stop(Stop::Graceful);
        shared.bury(1, 5, Report::Status(&killed()));
        shared.ask_to_stop(Stop::Now);
        let change = shared.change();
        assert_eq!((change.dead_before_stop, change.dead), (1, 2));
    }

    #[test]
    fn who_dies_together_with_a_signal_is_meant_to_and_who_died_long_before_is_not() {
        for (late, dead_before) in [(Duration::ZERO, 0), (Duration::from_mins(1), 1)] {
            let shared = Shared::new(2, "vLLM".to_owned());
            shared.bury(0, 5, Report::Status(&killed()));
            // The server has begun to end by itself.
            shared.ask_to_stop(Stop::Graceful);
            shared.bury(1, 5, Report::Status(&killed()));
            shared.take_signal(Stop::Graceful, Instant::now() + late);
            assert_eq!(shared.change().dead_before_stop, dead_before);
        }
    }

    #[test]
    fn the_health_has_the_same_keys() {
        let shared = Shared::new(1, "vLLM".to_owned());
        let value = serde_json::to_value(shared.health()).unwrap();
        assert_eq!(value["status"], "ok");
        assert_eq!(value.get("dead_workers"), None);
        shared.bury(0, 5, Report::Fact("not known"));
        let value = serde_json::to_value(shared.health()).unwrap();
        assert_eq!(value["status"], "unhealthy");
        assert_eq!(value["dead_workers"], serde_json::json!([0]));
        assert!(value["message"].is_string());
    }

    #[test]
    fn a_health_status_comes_back_as_it_was() {
        let shared = Shared::new(3, "vLLM".to_owned());
        shared.lock().workers[1].id = Some(ProcessId::new(77, 5));
        shared.bury(0, 5, Report::Fact("could not be started"));
        shared.bury(1, 5, Report::Status(&killed()));
        let orphan = Who {
            id: ProcessId::new(78, 6),
            name: Some("engine".into()),
        };
        shared.lock().orphans = vec![orphan];
        let health = shared.health();
        let value = serde_json::to_value(&health).unwrap();
        assert_eq!(value["causes"][0].get("pid"), None);
        assert_eq!(value["causes"][1]["pid"], 77);
        assert_eq!(value["causes"][1]["exit"]["signal"], 9);
        assert_eq!(
            serde_json::from_value::<HealthStatus>(value).unwrap(),
            health
        );
    }
}

//! What is ordered when a tree is to end, and what comes of it: one family of types for every way
//! to end one. They are what the library returns, what goes between lifemon's own processes, and
//! what JSON prints.
//!
//! - [`Killed`], [`Who`] (already dying) and [`Survivor`] are about one process each, with its full
//!   identity, and with how it died ([`Death`]) or why it is alive.
//! - [`Outcome`] is the three lists together. The child that kills with eBPF reports one to its
//!   parent, and the guardian reports one to its owner for each tree that it was asked to kill.
//! - [`KillReport`] is what an exact kill returns: an outcome, and the proof.
//! - `Order` asks for the end of everything below a process, [`Rest`] says what became of that:
//!   it joins what the child has reported with what its parent has seen itself.
//!
//! Two processes are never taken for one because of their pid (I3). An identity that came from
//! `/proc` is exact to a clock tick, so outcomes are joined by [`is_same_process`].
//!
//! In JSON a process is `pid`, `start_ns` and what else is known of it, a death is `exit`, and
//! fields that are not known are absent.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ProcessId;
use crate::loss::{Incomplete, Loss};
use crate::proc::Shared;
use crate::process::{Death, Name, Process, Who, is_same_process, json};

/// The process that an outcome is about, as it can be named when it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Subject {
    /// Its identity.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", schemars(with = "crate::process::json::IdSchema"))]
    pub id: ProcessId,
    /// Its `comm`, at most 15 bytes.
    #[serde(flatten)]
    pub name: Option<Name>,
    /// Real user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its pid in its own pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_pid: Option<u32>,
}

impl Subject {
    /// Returns the subject of which no more is known than this.
    pub(crate) const fn new(id: ProcessId, name: Option<Name>) -> Self {
        Self {
            id,
            name,
            uid: None,
            ns_pid: None,
        }
    }
}

impl From<Process> for Subject {
    fn from(process: Process) -> Self {
        Self {
            id: process.id,
            name: process.name,
            uid: process.uid,
            ns_pid: process.ns_pid,
        }
    }
}

impl From<&Subject> for Process {
    fn from(subject: &Subject) -> Self {
        Self {
            name: subject.name.clone(),
            uid: subject.uid,
            ns_pid: subject.ns_pid,
            ..Self::unknown(subject.id)
        }
    }
}

/// A process that died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Killed {
    /// The process.
    #[serde(flatten)]
    pub process: Subject,
    /// Its death; `None` where only the fact is known.
    #[serde(default, rename = "exit", skip_serializing_if = "Option::is_none")]
    pub death: Option<Death>,
}

impl Killed {
    pub(crate) fn new(process: impl Into<Subject>, death: Option<Death>) -> Self {
        Self {
            process: process.into(),
            death,
        }
    }
}

/// A process that is still alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Survivor {
    /// The process.
    #[serde(flatten)]
    pub process: Subject,
    /// The reason; `None` where it was to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Survivor {
    pub(crate) fn new(process: impl Into<Subject>, reason: Option<String>) -> Self {
        Self {
            process: process.into(),
            reason,
        }
    }
}

/// A living process that is no member of the tree and looks like a former one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Suspect {
    /// The process.
    #[serde(flatten)]
    pub process: Subject,
    /// Its present parent, which stands above the root and takes in orphans.
    pub parent: Who,
    /// What it has in common with the root or a member, and not with its parent.
    pub evidence: Vec<Shared>,
    /// True if it was killed with the tree.
    #[serde(default)]
    pub killed: bool,
}

/// The outcome for the processes of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Outcome {
    /// Every process that died.
    pub killed: Vec<Killed>,
    /// Members that were dying already when a signal was to be sent.
    pub already_dying: Vec<Who>,
    /// Members that are still alive.
    pub survivors: Vec<Survivor>,
}

impl Outcome {
    /// Adds processes that died, without those that are in it already.
    pub(crate) fn add_killed(&mut self, found: impl IntoIterator<Item = Killed>) {
        let mut known: HashMap<u32, Vec<ProcessId>> = HashMap::new();
        for killed in &self.killed {
            let id = killed.process.id;
            known.entry(id.pid).or_default().push(id);
        }
        for killed in found {
            let id = killed.process.id;
            let same_pid = known.entry(id.pid).or_default();
            if same_pid.iter().all(|other| !is_same_process(*other, id)) {
                same_pid.push(id);
                self.killed.push(killed);
            }
        }
    }
}

/// The report of an exact kill.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KillReport {
    /// The root.
    pub root: Process,
    /// The tree when the kill began, each creator before what it created.
    pub members: Vec<Process>,
    /// The outcome for the members.
    pub outcome: Outcome,
    /// Signals that were held back because the process had died since the members were read: its
    /// pid was free by then, or somebody else's.
    pub rejected: u64,
    /// Members that were left out, because whoever has asked for the kill may not end them.
    pub others: usize,
    /// True if none of the tree can run again: its live counter is 0.
    pub extinct: bool,
    /// The losses that make the answer incomplete.
    pub losses: Vec<Loss>,
    /// Processes that look like former members, where history is missing: those that are still
    /// alive, and those that were killed with the tree.
    pub suspects: Vec<Suspect>,
    /// True if the kill is done although suspects are alive.
    pub(crate) accepts_suspects: bool,
    /// From the beginning until it was extinct, or until the time was over.
    pub elapsed: Duration,
    /// Until the last of them was gone, its memory released; `None` when that was not seen.
    pub gone: Option<Duration>,
    /// GPU memory; `None` when nobody was to wait for it.
    pub release: Option<Release>,
}

impl KillReport {
    /// Returns whether nothing of the tree is left: no process, no GPU memory that was waited for,
    /// and no suspect, unless those are accepted. False after a loss that leaves this in doubt;
    /// that history is missing is none.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let is_released = |release: &Release| {
            release.held.is_empty() && !release.hung && release.failed.is_none()
        };
        self.extinct
            && self.outcome.survivors.is_empty()
            && self.losses.iter().all(|loss| loss.is_missing_history())
            && (self.accepts_suspects || self.suspects.iter().all(|suspect| suspect.killed))
            && self.release.as_ref().is_none_or(is_released)
    }

    /// Returns whether it is certain that no process of the tree is left.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.extinct && self.losses.is_empty() && self.outcome.survivors.is_empty()
    }

    /// Returns whether this process is among those that died.
    pub(crate) fn has_killed(&self, id: ProcessId) -> bool {
        let dying = self.outcome.already_dying.iter().map(|dying| dying.id);
        let killed = self.outcome.killed.iter().map(|killed| killed.process.id);
        killed.chain(dying).any(|dead| dead == id)
    }
}

/// The outcome for the GPU memory of the killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Release {
    /// Those that held some and have given it back.
    pub released: Vec<Released>,
    /// Those that still hold some.
    pub held: Vec<Held>,
    /// True if the driver did not answer.
    pub hung: bool,
    /// The driver's words, where its answer was an error: what is released is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A dead process whose GPU memory is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Released {
    /// The process.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", schemars(with = "crate::process::json::IdSchema"))]
    pub id: ProcessId,
    /// Since it began to die.
    #[serde(rename = "after_ms", with = "json::ms")]
    #[cfg_attr(feature = "cli", schemars(with = "f64"))]
    pub after: Duration,
}

/// A dead process that still holds GPU memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Held {
    /// The process.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", schemars(with = "crate::process::json::IdSchema"))]
    pub id: ProcessId,
    /// The state that it is in.
    pub state: String,
}

/// An order to end everything below a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Sent first, to let it end by itself.
    pub(crate) signal: Option<i32>,
    /// The time to wait after that.
    pub(crate) grace: Duration,
    /// Leave it alive.
    pub(crate) keep: bool,
    /// Leave those alive whose name or command line matches, and what is below them.
    #[serde(default)]
    pub(crate) keep_matching: Option<String>,
}

/// The way in which the rest was found and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Way {
    /// By the tracker: exact also against what forks while it is killed.
    Ebpf,
    /// By parents, because all of it ends up below a subreaper of ours.
    Subreaper,
    /// As [`Way::Subreaper`], and the node agent guards the tree.
    Agent,
}

impl Way {
    /// Returns the word of the output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Subreaper => "subreaper",
            Self::Agent => "agent",
        }
    }
}

/// The outcome for the processes that were left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rest {
    /// The way in which they were found and killed.
    pub way: Way,
    /// The reason why eBPF was not used, where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not_ebpf: Option<String>,
    /// Processes that were left behind and died.
    pub killed: Vec<Killed>,
    /// Processes that are still alive.
    pub survivors: Vec<Survivor>,
    /// True if nothing can have been missed.
    pub complete: bool,
    /// Reasons why it is not complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<Incomplete>,
    /// From the order until the end.
    #[serde(rename = "elapsed_ms", with = "json::ms")]
    pub elapsed: Duration,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subject(pid: u32, start_ns: u64) -> Subject {
        Subject::new(ProcessId::new(pid, start_ns), Some("sleep".into()))
    }

    #[test]
    fn an_outcome_comes_back_as_it_was() {
        let named = Subject {
            uid: Some(1_000),
            ns_pid: Some(7),
            ..subject(77, 1_234_567_890)
        };
        let outcome = Outcome {
            killed: vec![
                Killed::new(named.clone(), Some(Death::from_wait_status(9))),
                Killed::new(Subject::new(ProcessId::new(78, 0), None), None),
            ],
            already_dying: vec![Who {
                id: ProcessId::new(79, 5),
                name: None,
            }],
            survivors: vec![
                Survivor::new(named, Some("stopped".to_owned())),
                Survivor::new(subject(80, 6), None),
            ],
        };
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }

    #[test]
    fn a_rest_comes_back_as_it_was_and_names_what_is_known() {
        let rest = Rest {
            way: Way::Subreaper,
            why_not_ebpf: Some("no privileges".to_owned()),
            killed: vec![Killed::new(
                subject(77, 5),
                Some(Death::from_wait_status(3 << 8)),
            )],
            survivors: vec![Survivor::new(
                Subject::new(ProcessId::new(78, 0), None),
                None,
            )],
            complete: true,
            incomplete: Vec::new(),
            elapsed: Duration::from_micros(1_500),
        };
        let value = serde_json::to_value(&rest).unwrap();
        assert_eq!(
            value,
            json!({
                "way": "subreaper",
                "why_not_ebpf": "no privileges",
                "killed": [{
                    "pid": 77, "start_ns": 5, "name": "sleep",
                    "exit": {"code": 3, "signal": null, "core_dumped": false, "cause": "exited"},
                }],
                "survivors": [{"pid": 78}],
                "complete": true,
                "elapsed_ms": 1.5,
            })
        );
        assert_eq!(serde_json::from_value::<Rest>(value).unwrap(), rest);
    }

    #[test]
    fn a_release_names_who_holds_and_since_when_it_is_released() {
        let id = ProcessId::new(77, 5);
        let release = Release {
            released: vec![Released {
                id,
                after: Duration::from_micros(2_500),
            }],
            held: vec![Held {
                id,
                state: "state D".to_owned(),
            }],
            hung: false,
            failed: None,
        };
        let value = serde_json::to_value(&release).unwrap();
        assert_eq!(
            value,
            json!({
                "released": [{"pid": 77, "start_ns": 5, "after_ms": 2.5}],
                "held": [{"pid": 77, "start_ns": 5, "state": "state D"}],
                "hung": false,
            })
        );
        assert_eq!(serde_json::from_value::<Release>(value).unwrap(), release);
    }

    #[test]
    fn two_processes_that_have_had_the_same_pid_are_two() {
        let exact = ProcessId::new(77, 1_234_567_890);
        let mut outcome = Outcome::default();
        outcome.add_killed([Killed::new(
            Subject::new(exact, None),
            Some(Death::from_wait_status(9)),
        )]);
        // The same from /proc, and the one that had its pid afterwards.
        let again = Killed::new(subject(77, 1_230_000_000), None);
        let heir = Killed::new(subject(77, 1_250_000_000), None);
        outcome.add_killed([again, heir.clone()]);
        assert_eq!(outcome.killed.len(), 2);
        assert!(outcome.killed[0].death.is_some());
        assert_eq!(outcome.killed[1], heir);
    }
}

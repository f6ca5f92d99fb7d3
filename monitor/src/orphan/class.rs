//! Decides the class of an orphan from facts alone. Pure: no I/O, no clock.
//!
//! The danger lies on one side: a leaked worker that is taken for a daemon is not shown. So a
//! daemon needs evidence that its creator meant to leave it: it runs in a unit of its own, or the
//! creator exited with 0 at once after creating it and it has settled down as daemons do. A creator
//! that was killed, or that worked for a while first, never leaves a daemon.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::{Cause, Death};

/// The longest time from a fork to the creator's exit that still counts as leaving the child behind
/// on purpose.
const DETACHED_WITHIN_NS: u64 = 2_000_000_000;

/// The kind of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Class {
    /// The root of its tree is dead too.
    Stranded,
    /// The root of its tree lives.
    Reparented,
    /// There is evidence that its creator meant to leave it behind.
    Daemon,
    /// Older than tracking: its creator is unknown, and there is evidence that the creator is dead.
    Inferred,
}

impl Class {
    /// Returns the word of the output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stranded => "stranded",
            Self::Reparented => "reparented",
            Self::Daemon => "daemon",
            Self::Inferred => "inferred",
        }
    }

    /// Returns whether it is shown, and may be killed, without being asked for.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        matches!(self, Self::Stranded | Self::Reparented)
    }
}

/// One reason for the class of an orphan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// It runs in a systemd unit that its creator did not run in.
    OwnUnit(String),
    /// Its creator exited with 0 this many ms after creating it.
    CreatorLeftAtOnce(u64),
    /// It leads a session, or is in one that its creator made for it.
    OwnSession,
    /// It runs another program than its creator did.
    OtherProgram,
    /// Its standard input is `/dev/null`.
    NullInput,
    /// It is in a terminal session below this program, which lives.
    TerminalSession(String),
    /// It did not make a session, and its parent is in another: so the parent has adopted it.
    SessionOfOthers(u32),
    /// The leader of its session is gone.
    SessionLeaderGone(u32),
    /// It is in a session of a process of the known tree.
    SharedSession(u32),
    /// It is in the control group of the known tree.
    SharedCgroup(String),
    /// It has this environment variable in common with the known tree.
    SharedJob(String),
    /// It has this pipe, socket or memory in common with a process of the known tree.
    SharedFile(String),
    /// It has a GPU open.
    Device(String),
    /// `attach`, which knew its creator, has seen it left behind by the tree of this root.
    LeftBehind(String),
}

impl Evidence {
    /// Returns the word of the JSON output.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::OwnUnit(_) => "own_unit",
            Self::CreatorLeftAtOnce(_) => "creator_left_at_once",
            Self::OwnSession => "own_session",
            Self::OtherProgram => "other_program",
            Self::NullInput => "null_input",
            Self::TerminalSession(_) => "terminal_session",
            Self::SessionOfOthers(_) => "session_of_others",
            Self::SessionLeaderGone(_) => "session_leader_gone",
            Self::SharedSession(_) => "shared_session",
            Self::SharedCgroup(_) => "shared_cgroup",
            Self::SharedJob(_) => "shared_job",
            Self::SharedFile(_) => "shared_file",
            Self::Device(_) => "device",
            Self::LeftBehind(_) => "left_behind",
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnUnit(unit) => write!(f, "runs in its own unit {unit}"),
            Self::CreatorLeftAtOnce(ms) => write!(f, "its creator exited with 0 after {ms} ms"),
            Self::OwnSession => f.write_str("has a session of its own"),
            Self::OtherProgram => f.write_str("runs another program than its creator"),
            Self::NullInput => f.write_str("reads from /dev/null"),
            Self::TerminalSession(name) => write!(f, "in a terminal session below {name}"),
            Self::SessionOfOthers(session) => {
                write!(f, "in session {session}, which is not its parent's")
            }
            Self::SessionLeaderGone(session) => {
                write!(f, "the leader {session} of its session is gone")
            }
            Self::SharedSession(session) => write!(f, "in session {session} of the tree"),
            Self::SharedCgroup(path) => write!(f, "in control group {path} of the tree"),
            Self::SharedJob(variable) => write!(f, "{variable} as in the tree"),
            Self::SharedFile(file) => write!(f, "has {file} open, as the tree has"),
            Self::Device(device) => write!(f, "has {device} open"),
            Self::LeftBehind(root) => write!(f, "seen to be left behind by the tree of {root}"),
        }
    }
}

/// The facts about an orphan whose creator's death was seen.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, in any combination"
)]
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The death of its creator.
    pub creator_death: Option<Death>,
    /// From its start to the death of its creator, in ns.
    pub creator_outlived_ns: Option<u64>,
    /// True if the root of its tree is live.
    pub root_alive: bool,
    /// Its systemd unit, when its creator was in another control group.
    pub own_unit: Option<String>,
    /// True if its session is not one that its creator had before the fork.
    pub own_session: bool,
    /// True if its name differs from its creator's.
    pub other_program: bool,
    /// True if its standard input is `/dev/null`.
    pub null_input: bool,
    /// tmux, screen or sshd above the living leader of its terminal session.
    pub terminal_session: Option<String>,
}

/// Returns the class of an orphan whose creator's death was seen, and why.
#[must_use]
pub fn classify(facts: &Facts) -> (Class, Vec<Evidence>) {
    if let Some(unit) = &facts.own_unit {
        return (Class::Daemon, vec![Evidence::OwnUnit(unit.clone())]);
    }
    let evidence = deliberate(facts);
    if !evidence.is_empty() {
        return (Class::Daemon, evidence);
    }
    let class = if facts.root_alive {
        Class::Reparented
    } else {
        Class::Stranded
    };
    (class, Vec::new())
}

/// Returns the evidence that the process was created to be left behind; empty if it does not
/// suffice.
fn deliberate(facts: &Facts) -> Vec<Evidence> {
    let exited_well = facts
        .creator_death
        .as_ref()
        .is_some_and(|death| death.cause() == Cause::Exited && death.code() == Some(0));
    let Some(outlived_ns) = facts
        .creator_outlived_ns
        .filter(|ns| exited_well && *ns <= DETACHED_WITHIN_NS)
    else {
        return Vec::new();
    };
    let mut evidence = vec![Evidence::CreatorLeftAtOnce(outlived_ns / 1_000_000)];
    if let Some(name) = &facts.terminal_session {
        evidence.push(Evidence::TerminalSession(name.clone()));
        return evidence;
    }
    if !facts.own_session || !(facts.other_program || facts.null_input) {
        return Vec::new();
    }
    evidence.push(Evidence::OwnSession);
    if facts.other_program {
        evidence.push(Evidence::OtherProgram);
    }
    if facts.null_input {
        evidence.push(Evidence::NullInput);
    }
    evidence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(status: u32) -> Death {
        Death {
            status,
            is_oom: false,
            sender: None,
            unseen: false,
        }
    }

    /// Returns the facts of what daemon(3) makes.
    fn daemon() -> Facts {
        Facts {
            creator_death: Some(death(0)),
            creator_outlived_ns: Some(1_000_000),
            own_session: true,
            null_input: true,
            ..Facts::default()
        }
    }

    fn class(facts: &Facts) -> Class {
        classify(facts).0
    }

    #[test]
    fn a_daemon_was_left_on_purpose() {
        assert_eq!(class(&daemon()), Class::Daemon);
        let exec = Facts {
            null_input: false,
            other_program: true,
            ..daemon()
        };
        assert_eq!(class(&exec), Class::Daemon);
    }

    #[test]
    fn a_worker_of_a_killed_server_is_never_a_daemon() {
        for status in [9, 15, 1 << 8] {
            let facts = Facts {
                creator_death: Some(death(status)),
                ..daemon()
            };
            assert_eq!(class(&facts), Class::Stranded);
        }
    }

    #[test]
    fn a_server_that_worked_before_it_exited_leaves_no_daemon() {
        let facts = Facts {
            creator_outlived_ns: Some(DETACHED_WITHIN_NS + 1),
            ..daemon()
        };
        assert_eq!(class(&facts), Class::Stranded);
    }

    #[test]
    fn a_double_fork_alone_is_no_daemon() {
        let facts = Facts {
            own_session: false,
            ..daemon()
        };
        assert_eq!(class(&facts), Class::Stranded);
        let facts = Facts {
            null_input: false,
            root_alive: true,
            ..daemon()
        };
        assert_eq!(class(&facts), Class::Reparented);
    }

    #[test]
    fn a_unit_of_its_own_is_deliberate_whatever_became_of_the_creator() {
        let facts = Facts {
            creator_death: Some(death(9)),
            own_unit: Some("a.service".to_owned()),
            ..Facts::default()
        };
        assert_eq!(class(&facts), Class::Daemon);
    }

    #[test]
    fn background_jobs_of_a_terminal_session_are_deliberate_if_left_at_once() {
        let facts = Facts {
            terminal_session: Some("tmux: server".to_owned()),
            own_session: false,
            ..daemon()
        };
        assert_eq!(class(&facts), Class::Daemon);
        let later = Facts {
            creator_outlived_ns: Some(60_000_000_000),
            ..facts
        };
        assert_eq!(class(&later), Class::Stranded);
    }
}

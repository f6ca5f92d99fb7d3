//! Decides from facts alone how an orphan was left. Pure: no I/O, no clock.
//!
//! What the lineage knows for certain leads: how the process that started the orphan ended, and how
//! the root of its tree did. Nothing is guessed from times, and no name is looked at.
//!
//! - *Another program*: the orphan itself has called exec since it was created.
//! - *A session of its own*: the orphan has made it, or its starter made it after the starter's
//!   last exec. So the shell of `setsid bash -c 'job &'`, which was started in its session, gives
//!   its job none; the double fork of daemon(3) does.
//! - *The starter* is the creator. Where dead creators between the two are not kept, the starter is
//!   not known: it has neither exited by itself nor been killed, and only that one of those died
//!   badly is left of them. A starter that was forked to make the session, and never called exec,
//!   is a part of its program: if that was killed, so was the starter.
//! - The hang-up of a terminal (SIGHUP) is no bad death.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::{Cause, Death, Signal};

/// How an orphan was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// What started it, or the root of its tree, was killed or has failed.
    Leaked,
    /// What started it exited with 0, and there is no evidence that it was to stay.
    Left,
    /// There is evidence that it was to stay.
    Deliberate,
    /// Older than tracking: nobody saw how it was left.
    Inferred,
}

impl Verdict {
    /// Every verdict, the most certain leak first.
    pub const ALL: [Self; 4] = [Self::Leaked, Self::Left, Self::Deliberate, Self::Inferred];

    /// Returns the word of the output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Leaked => "leaked",
            Self::Left => "left",
            Self::Deliberate => "deliberate",
            Self::Inferred => "inferred",
        }
    }

    /// Returns whether it was left behind as far as anybody can tell: it is shown without being
    /// asked for.
    #[must_use]
    pub const fn is_left_behind(self) -> bool {
        matches!(self, Self::Leaked | Self::Left)
    }
}

/// One reason for a verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// It runs in a systemd unit or a container that its creator did not run in.
    OwnUnit(String),
    /// It has entered a container that was there, from outside, and is not its first process.
    EnteredContainer(String),
    /// Orphans below it are handed to it.
    Subreaper,
    /// It has created the first process of a pid namespace.
    CreatedInit(u32),
    /// It has a session of its own.
    OwnSession,
    /// It has called exec.
    OtherProgram,
    /// Its standard input is `/dev/null`.
    NullInput,
    /// It ignores SIGHUP.
    IgnoresHangup,
    /// The parent that it had when tracking began is dead.
    ParentDied(u32),
    /// It did not make a session, and its parent is in another: so the parent has adopted it.
    SessionOfOthers(u32),
    /// The leader of its session is gone.
    SessionLeaderGone(u32),
    /// It carries this variable of a job.
    OfJob(String),
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
            Self::EnteredContainer(_) => "entered_container",
            Self::Subreaper => "subreaper",
            Self::CreatedInit(_) => "created_init",
            Self::OwnSession => "own_session",
            Self::OtherProgram => "other_program",
            Self::NullInput => "null_input",
            Self::IgnoresHangup => "ignores_hangup",
            Self::ParentDied(_) => "parent_died",
            Self::SessionOfOthers(_) => "session_of_others",
            Self::SessionLeaderGone(_) => "session_leader_gone",
            Self::OfJob(_) => "of_job",
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
            Self::OwnUnit(unit) => write!(f, "runs in {unit}, which is its own"),
            Self::EnteredContainer(unit) => {
                write!(f, "was started in the container {unit} from outside (exec)")
            }
            Self::Subreaper => f.write_str("adopts the orphans below it"),
            Self::CreatedInit(pid) => write!(f, "has created the pid namespace of {pid}"),
            Self::OwnSession => f.write_str("has a session of its own"),
            Self::OtherProgram => f.write_str("runs another program than its creator"),
            Self::NullInput => f.write_str("reads from /dev/null"),
            Self::IgnoresHangup => f.write_str("ignores SIGHUP"),
            Self::ParentDied(pid) => write!(f, "its parent {pid} of that time has died"),
            Self::SessionOfOthers(session) => {
                write!(f, "in session {session}, which is not its parent's")
            }
            Self::SessionLeaderGone(session) => {
                write!(f, "the leader {session} of its session is gone")
            }
            Self::OfJob(variable) => write!(f, "carries {variable}"),
            Self::SharedSession(session) => write!(f, "in session {session} of the tree"),
            Self::SharedCgroup(path) => write!(f, "in control group {path} of the tree"),
            Self::SharedJob(variable) => write!(f, "{variable} as in the tree"),
            Self::SharedFile(file) => write!(f, "has {file} open, as the tree has"),
            Self::Device(device) => write!(f, "has {device} open"),
            Self::LeftBehind(root) => write!(f, "seen to be left behind by the tree of {root}"),
        }
    }
}

/// How a process ended, as far as that says why it left others behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// It lives, or nobody saw how it died.
    #[default]
    Unknown,
    /// It exited with 0.
    Well,
    /// It exited with another code.
    Failed,
    /// The hang-up of a terminal ended it.
    HungUp,
    /// Another signal ended it, or the out-of-memory killer.
    Killed,
}

impl Ending {
    /// Returns how a process with this death ended.
    #[must_use]
    pub fn of(death: &Death) -> Self {
        match (death.cause(), death.signal(), death.code()) {
            (Cause::Unseen, ..) => Self::Unknown,
            (Cause::Signal, Some(Signal::HUP), _) => Self::HungUp,
            (Cause::Signal | Cause::Oom, ..) => Self::Killed,
            (Cause::Exited, _, Some(0)) => Self::Well,
            (Cause::Exited, ..) => Self::Failed,
        }
    }

    /// Returns whether it exited by itself, with any code.
    const fn is_by_itself(self) -> bool {
        matches!(self, Self::Well | Self::Failed)
    }
}

/// The facts about an orphan.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, in any combination"
)]
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// True if it is older than tracking.
    pub is_older: bool,
    /// Its systemd unit or container, when its creator was in another control group.
    pub own_unit: Option<String>,
    /// True if that is a container which has another first process.
    pub has_entered: bool,
    /// True if orphans below it are handed to it.
    pub is_subreaper: bool,
    /// The first process of a pid namespace that it has created.
    pub created_init: Option<u32>,
    /// The end of what started it; unknown where dead creators between the two are not kept.
    pub starter: Ending,
    /// True if one of those that are not kept died badly.
    pub elided_badly: bool,
    /// The end of the root of its tree.
    pub root: Ending,
    /// True if it has a session of its own.
    pub own_session: bool,
    /// True if it has called exec.
    pub other_program: bool,
    /// True if its standard input is `/dev/null`.
    pub null_input: bool,
    /// True if it ignores SIGHUP.
    pub ignores_hangup: bool,
}

/// Returns the verdict on an orphan, and why.
#[must_use]
pub fn judge(facts: &Facts) -> (Verdict, Vec<Evidence>) {
    if facts.is_older {
        return (Verdict::Inferred, Vec::new());
    }
    let manages = managers(facts);
    if !manages.is_empty() {
        return (Verdict::Deliberate, manages);
    }
    let session = session(facts);
    let is_killed = [facts.starter, facts.root].contains(&Ending::Killed);
    if is_killed && session.is_empty() {
        return (Verdict::Leaked, Vec::new());
    }
    if !session.is_empty() {
        return (Verdict::Deliberate, session);
    }
    let may_be_nohup = facts.starter.is_by_itself() || facts.starter == Ending::HungUp;
    if facts.ignores_hangup && may_be_nohup {
        return (Verdict::Deliberate, vec![Evidence::IgnoresHangup]);
    }
    if facts.starter == Ending::Failed || facts.elided_badly {
        return (Verdict::Leaked, Vec::new());
    }
    (Verdict::Left, Vec::new())
}

/// Returns the evidence that it is there to manage others, whatever became of its starter.
fn managers(facts: &Facts) -> Vec<Evidence> {
    let of_unit = if facts.has_entered {
        Evidence::EnteredContainer
    } else {
        Evidence::OwnUnit
    };
    let unit = facts.own_unit.clone().map(of_unit);
    let subreaper = facts.is_subreaper.then_some(Evidence::Subreaper);
    let init = facts.created_init.map(Evidence::CreatedInit);
    [unit, subreaper, init].into_iter().flatten().collect()
}

/// Returns the evidence that it was given a session to stay in; empty where that does not suffice.
fn session(facts: &Facts) -> Vec<Evidence> {
    let beside = [
        (facts.other_program, Evidence::OtherProgram),
        (facts.null_input, Evidence::NullInput),
        (facts.ignores_hangup, Evidence::IgnoresHangup),
    ];
    let beside = beside.into_iter().filter(|(holds, _)| *holds);
    let mut evidence = vec![Evidence::OwnSession];
    evidence.extend(beside.map(|(_, evidence)| evidence));
    let suffices = facts.own_session && evidence.len() > 1 && facts.starter.is_by_itself();
    if suffices { evidence } else { Vec::new() }
}

#[cfg(test)]
mod tests;

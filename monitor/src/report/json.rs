//! The JSON of lifemon: one object a line for streams. Fields are absent when unknown, never
//! invented.

use serde::Serialize;

use crate::ProcessId;
use crate::gpu::release::News;
use crate::kernel::clock::WallClock;
use crate::loss::Loss;
pub(super) use crate::process::json::ExitJson;
use crate::process::{Process, Sender, Who, signal_name};
use crate::session::Start;
use crate::watch::{Happening, Totals, What};

/// Version of every object.
pub const SCHEMA: &str = "lifemon/1";

/// Identity alone.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Id {
    pid: u32,
    start_ns: u64,
}

impl From<ProcessId> for Id {
    fn from(id: ProcessId) -> Self {
        Self {
            pid: id.pid,
            start_ns: id.start_ns,
        }
    }
}

#[derive(Serialize)]
pub(super) struct WhoJson {
    #[serde(flatten)]
    id: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl From<&Who> for WhoJson {
    fn from(who: &Who) -> Self {
        Self {
            id: who.id.into(),
            name: who.name.clone(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct ProcessJson {
    #[serde(flatten)]
    id: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_pid: Option<u32>,
}

impl From<&Process> for ProcessJson {
    fn from(process: &Process) -> Self {
        Self {
            id: process.id.into(),
            name: process.name.clone(),
            uid: process.uid,
            ns_pid: process.ns_pid,
        }
    }
}

/// A member or ghost in a list: with its creator, and with its death if it is a ghost.
#[derive(Serialize)]
pub(super) struct MemberJson {
    #[serde(flatten)]
    process: ProcessJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<Id>,
    #[serde(skip_serializing_if = "is_false")]
    inferred: bool,
    #[serde(skip_serializing_if = "is_zero")]
    elided: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    died: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
}

impl From<&Process> for MemberJson {
    fn from(process: &Process) -> Self {
        Self {
            process: process.into(),
            creator: process.creator.map(Into::into),
            inferred: process.inferred,
            elided: process.elided,
            died: None,
            exit: None,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[derive(Serialize)]
struct SignalJson {
    signal: u32,
    signal_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<Sender>,
}

impl MemberJson {
    /// Says when and how it died.
    pub(super) fn set_death(&mut self, died: String, exit: ExitJson) {
        self.died = Some(died);
        self.exit = Some(exit);
    }
}

/// One reason why an answer is not complete.
#[derive(Serialize)]
pub(super) struct IncompleteJson {
    reason: &'static str,
    advice: &'static str,
}

impl IncompleteJson {
    pub(super) fn of(loss: Loss) -> Self {
        Self {
            reason: loss.word(),
            advice: loss.advice(),
        }
    }
}

#[derive(Serialize)]
struct LossJson {
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// One line of a stream.
#[derive(Serialize, Default)]
struct Line {
    schema: &'static str,
    event: &'static str,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    tree: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<WhoJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<SignalJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphans: Option<Vec<WhoJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    resynced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<MemberJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<Vec<MemberJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ghosts: Option<Vec<MemberJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracker: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<SummaryJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<LossJson>,
}

#[derive(Serialize)]
struct SummaryJson {
    seen: u64,
    exits: std::collections::BTreeMap<&'static str, u64>,
    alive: u64,
    orphans: Vec<WhoJson>,
    lost_events: u64,
    resynced: u64,
}

/// Writes the lines of one stream.
#[derive(Debug)]
pub struct Stream {
    clock: WallClock,
    tree: ProcessId,
    seq: u64,
}

/// What the closing summary says.
#[derive(Debug, Clone)]
pub struct Summary<'a> {
    /// When, ns since boot.
    pub at_ns: u64,
    /// Counts of the model.
    pub totals: &'a Totals,
    /// Members alive, from the kernel's counter.
    pub alive: u64,
    /// Living members whose creator is dead.
    pub orphans: Vec<Who>,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// What makes the answer incomplete.
    pub losses: &'a [Loss],
}

impl Stream {
    /// A stream about the tree of `root`.
    #[must_use]
    pub fn new(clock: WallClock, root: ProcessId) -> Self {
        Self {
            clock,
            tree: root,
            seq: 0,
        }
    }

    fn line(&mut self, event: &'static str, at_ns: Option<u64>) -> Line {
        self.seq += 1;
        Line {
            schema: SCHEMA,
            event,
            seq: self.seq,
            time: at_ns.map(|at| self.clock.rfc3339(at)),
            tree: Some(self.tree.into()),
            ..Line::default()
        }
    }

    fn finish(line: &Line) -> String {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The snapshot that opens the stream.
    pub fn attached(&mut self, start: &Start, at_ns: u64, is_pinned: bool) -> String {
        let ghosts = start
            .ghosts
            .iter()
            .map(|(process, died_ns, death)| MemberJson {
                died: Some(self.clock.rfc3339(*died_ns)),
                exit: Some(death.into()),
                ..MemberJson::from(process)
            });
        let ghosts = ghosts.collect();
        let since = self.clock.rfc3339(start.since_ns);
        Self::finish(&Line {
            root: Some((&start.root).into()),
            members: Some(start.members.iter().map(Into::into).collect()),
            ghosts: Some(ghosts),
            since: Some(since),
            tracker: Some(if is_pinned { "host" } else { "private" }),
            complete: Some(start.losses.is_empty()),
            incomplete: start
                .losses
                .iter()
                .map(|(loss, count)| LossJson {
                    reason: loss.word(),
                    count: Some(*count),
                })
                .collect(),
            ..self.line("attached", Some(at_ns))
        })
    }

    /// One happening. `parent` is the present parent of an orphan.
    pub fn happening(&mut self, happening: &Happening, parent: Option<u32>) -> String {
        let mut line = self.line(word(&happening.what), happening.at_ns);
        line.process = Some((&happening.process).into());
        line.creator = happening.creator.as_ref().map(Into::into);
        line.resynced = happening.resynced;
        match &happening.what {
            What::Fork | What::Exec => {}
            What::Signal { signal, sender } => {
                line.signal = Some(SignalJson {
                    signal: *signal,
                    signal_name: signal_name(*signal),
                    sender: sender.clone(),
                });
            }
            What::Exit { death, orphans } => {
                line.exit = death.as_ref().map(Into::into);
                line.orphans = Some(orphans.iter().map(Into::into).collect());
                line.age_ms = happening.age_ms();
            }
            What::Gone { after_ns } => line.after_us = after_ns.map(|after| after / 1_000),
            What::Orphaned { root_alive } => {
                line.class = Some(if *root_alive {
                    "reparented"
                } else {
                    "stranded"
                });
                line.parent = parent;
            }
        }
        Self::finish(&line)
    }

    /// What became of the GPU memory of a process that died.
    pub fn news(&mut self, news: &News, of: Option<&Process>, now_ns: u64) -> String {
        let (event, id, at_ns, after_ns, state) = match news {
            News::Released {
                id,
                at_ns,
                after_ns,
            } => ("released", *id, *at_ns, *after_ns, None),
            News::StillHeld {
                id,
                after_ns,
                state,
            } => ("held", *id, now_ns, *after_ns, Some(state.clone())),
            News::Hung => return String::new(),
        };
        let mut line = self.line(event, Some(at_ns));
        let unknown = Process::unknown(id);
        line.process = Some(of.unwrap_or(&unknown).into());
        line.after_us = Some(after_ns / 1_000);
        line.state = state;
        Self::finish(&line)
    }

    /// Something was lost, or made good.
    pub fn lost(
        &mut self,
        at_ns: u64,
        loss: Loss,
        count: u64,
        recovered: bool,
        complete: bool,
    ) -> String {
        Self::finish(&Line {
            reason: Some(loss.word()),
            count: Some(count),
            recovered: Some(recovered),
            complete: Some(complete),
            ..self.line("lost", Some(at_ns))
        })
    }

    /// No member can run again.
    pub fn extinct(&mut self, at_ns: u64, complete: bool) -> String {
        Self::finish(&Line {
            complete: Some(complete),
            ..self.line("extinct", Some(at_ns))
        })
    }

    /// The closing line.
    pub fn detached(&mut self, summary: &Summary<'_>) -> String {
        let totals = summary.totals;
        let mut exits: std::collections::BTreeMap<_, _> = totals
            .exits
            .iter()
            .map(|(cause, count)| (cause.word(), *count))
            .collect();
        if totals.exits_unknown > 0 {
            exits.insert("unknown", totals.exits_unknown);
        }
        Self::finish(&Line {
            complete: Some(summary.losses.is_empty()),
            incomplete: summary
                .losses
                .iter()
                .map(|loss| LossJson {
                    reason: loss.word(),
                    count: None,
                })
                .collect(),
            summary: Some(SummaryJson {
                seen: totals.seen,
                exits,
                alive: summary.alive,
                orphans: summary.orphans.iter().map(Into::into).collect(),
                lost_events: summary.lost_events,
                resynced: totals.resynced,
            }),
            ..self.line("detached", Some(summary.at_ns))
        })
    }
}

/// The word of the event.
#[must_use]
pub const fn word(what: &What) -> &'static str {
    match what {
        What::Fork => "fork",
        What::Exec => "exec",
        What::Signal { .. } => "signal",
        What::Exit { .. } => "exit",
        What::Gone { .. } => "gone",
        What::Orphaned { .. } => "orphaned",
    }
}

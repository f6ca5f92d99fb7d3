//! A stream as JSON: one object a line.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{SenderRoot, Summary, word};
use crate::ProcessId;
use crate::gpu::release::News;
use crate::kernel::clock::WallClock;
use crate::loss::{Incomplete, Loss};
use crate::process::json::ExitJson;
use crate::process::{Process, Sender, Signal, Who};
use crate::report::json::{Id, MemberJson, ProcessJson, SCHEMA, is_false};
use crate::session::{Ghost, Start};
use crate::watch::{Happening, What};

#[derive(Serialize, JsonSchema)]
struct SignalJson {
    signal: Signal,
    signal_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<Sender>,
    /// The root of the tree of who sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_root: Option<SenderRoot>,
    #[serde(skip_serializing_if = "is_false")]
    parent_death: bool,
}

/// One line of a stream.
#[derive(Serialize, Default, JsonSchema)]
pub(crate) struct Line {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "event"))]
    kind: &'static str,
    event: &'static str,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    tree: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<Who>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<SignalJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphans: Option<Vec<Who>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stranded: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Who>,
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
    incomplete: Vec<Incomplete>,
}

#[derive(Serialize, JsonSchema)]
struct SummaryJson {
    seen: u64,
    exits: BTreeMap<&'static str, u64>,
    alive: u64,
    orphans: Vec<Who>,
    lost_events: u64,
    resynced: u64,
}

/// Writes the lines of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    clock: WallClock,
    tree: ProcessId,
    seq: u64,
}

impl Stream {
    /// Begins a stream about the tree of `root`.
    #[must_use]
    pub(super) fn new(clock: WallClock, root: ProcessId) -> Self {
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
            kind: "event",
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

    /// Writes the snapshot that opens the stream.
    pub(super) fn attached(&mut self, start: &Start, at_ns: u64, is_pinned: bool) -> String {
        let ghosts = start.ghosts.iter().map(|ghost| self.ghost(ghost)).collect();
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
                .map(|lost| Incomplete::counted(lost.loss, lost.count))
                .collect(),
            ..self.line("attached", Some(at_ns))
        })
    }

    fn ghost(&self, ghost: &Ghost) -> MemberJson {
        let mut member = MemberJson::from(&ghost.process);
        let died = self.clock.rfc3339(ghost.died.at_ns);
        member.set_death(died, ExitJson::from(&ghost.died.death));
        member
    }

    /// Writes one happening. `parent` is the present parent of an orphan.
    pub(super) fn happening(
        &mut self,
        happening: &Happening,
        parent: Option<Who>,
        sender_root: Option<&SenderRoot>,
    ) -> String {
        let mut line = self.line(word(&happening.what), happening.at_ns);
        line.process = Some((&happening.process).into());
        line.creator.clone_from(&happening.creator);
        line.resynced = happening.resynced;
        match &happening.what {
            What::Fork | What::Exec => {}
            What::Signal {
                signal,
                sender,
                parent_death,
            } => {
                line.signal = Some(SignalJson {
                    signal: *signal,
                    signal_name: signal.to_string(),
                    sender: sender.clone(),
                    sender_root: sender_root.cloned(),
                    parent_death: *parent_death,
                });
            }
            What::Exit { death, orphans } => {
                line.exit = death.as_ref().map(Into::into);
                line.orphans = Some(orphans.clone());
                line.age_ms = happening.age_ms();
            }
            What::Gone { after_ns } => line.after_us = after_ns.map(|after| after / 1_000),
            What::Orphaned { root_alive } => {
                line.stranded = Some(!root_alive);
                line.parent = parent;
            }
        }
        Self::finish(&line)
    }

    /// Writes what became of the GPU memory of a process that died.
    pub(super) fn news(&mut self, news: &News, of: Option<&Process>, now_ns: u64) -> String {
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
            News::Hung | News::Failed(_) => return String::new(),
        };
        let mut line = self.line(event, Some(at_ns));
        let unknown = Process::unknown(id);
        line.process = Some(of.unwrap_or(&unknown).into());
        line.after_us = Some(after_ns / 1_000);
        line.state = state;
        Self::finish(&line)
    }

    /// Writes that something was lost, or recovered.
    pub(super) fn lost(
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

    /// Writes that no member can run again.
    pub(super) fn extinct(&mut self, at_ns: u64, complete: bool) -> String {
        Self::finish(&Line {
            complete: Some(complete),
            ..self.line("extinct", Some(at_ns))
        })
    }

    /// Writes the closing line.
    pub(super) fn detached(&mut self, summary: &Summary<'_>) -> String {
        let totals = summary.totals;
        let mut exits: BTreeMap<_, _> = totals
            .exits
            .iter()
            .map(|(cause, count)| (cause.word(), *count))
            .collect();
        if totals.exits_unknown > 0 {
            exits.insert("unknown", totals.exits_unknown);
        }
        Self::finish(&Line {
            complete: Some(summary.losses.is_empty()),
            incomplete: Incomplete::all(summary.losses),
            summary: Some(SummaryJson {
                seen: totals.seen,
                exits,
                alive: summary.alive,
                orphans: summary.orphans.clone(),
                lost_events: summary.lost_events,
                resynced: totals.resynced,
            }),
            ..self.line("detached", Some(summary.at_ns))
        })
    }
}

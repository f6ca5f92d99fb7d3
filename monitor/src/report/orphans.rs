//! Orphans, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::holding::{self, HoldingJson};
use super::json::{ProcessJson, SCHEMA};
use super::kill::KilledJson;
use super::out::printable;
use super::text::{self, Tone, duration_ms, paint};
use super::tree::{KnownJson, StartJson, Style, command, placed};
use crate::kernel::snapshot::Snapshot;
use crate::kill::KillReport;
use crate::loss::Loss;
use crate::orphan::{Class, Evidence, Orphan};
use crate::process::Who;
use crate::process::json::ExitJson;

/// Returns the orphans as text.
#[must_use]
pub fn text(orphans: &[Orphan], losses: &[Loss], style: Style) -> String {
    let mut text = String::new();
    if orphans.is_empty() {
        text.push_str("no orphans\n");
    }
    for orphan in orphans {
        one(&mut text, orphan, style);
    }
    text::incomplete(&mut text, style.colour, losses);
    text
}

/// Adds a head line, and what explains it below.
fn one(text: &mut String, orphan: &Orphan, style: Style) {
    let tone = match orphan.class {
        Class::Stranded => Tone::Bad,
        Class::Reparented => Tone::Warn,
        Class::Daemon | Class::Inferred => Tone::Faint,
    };
    let class = paint(style.colour, tone, &format!("{:<10}", orphan.class.word()));
    let shown = command(&orphan.command, style.full);
    let gpu = holding::text(&orphan.gpu);
    let _ = writeln!(
        text,
        "{class} {}  {shown}{gpu}",
        text::process(&orphan.process)
    );
    let mut story = Vec::new();
    if let Some(creator) = &orphan.creator {
        let how = orphan.creator_death.as_ref().map(text::how);
        let since = orphan
            .orphaned_ns
            .map(|at| duration_ms(style.now_ns.saturating_sub(at) / 1_000_000));
        let (how, since) = (how.unwrap_or_default(), since.unwrap_or_default());
        story.push(format!(
            "creator {} died {since} ago: {how}",
            text::who(creator)
        ));
    }
    if let Some(root) = &orphan.root {
        let state = if orphan.root_alive {
            "lives"
        } else {
            "is dead"
        };
        story.push(format!("root {} {state}", text::who(root)));
    }
    if let Some(parent) = &orphan.parent {
        story.push(format!("parent is {}", text::who(parent)));
    }
    let placed = placed(&orphan.placement);
    if !placed.is_empty() {
        story.push(placed.trim_start_matches(", ").to_owned());
    }
    let evidence = orphan
        .evidence
        .iter()
        .map(|evidence| printable(&evidence.to_string()));
    story.extend(evidence);
    let line = format!("           {}\n", story.join("; "));
    text.push_str(&paint(style.colour, Tone::Faint, &line));
}

#[derive(Serialize)]
struct ReportJson<'a> {
    schema: &'static str,
    orphans: Vec<OrphanJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kill: Option<KilledJson>,
    #[serde(flatten)]
    known: KnownJson,
}

/// An orphan.
#[derive(Serialize)]
pub(super) struct OrphanJson<'a> {
    #[serde(flatten)]
    process: ProcessJson,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<Who>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator_exit: Option<ExitJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphaned: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphaned_ms: Option<u64>,
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<RootJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Who>,
    state: char,
    #[serde(flatten)]
    start: StartJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<HoldingJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<EvidenceJson>,
}

#[derive(Serialize)]
struct RootJson {
    #[serde(flatten)]
    who: Who,
    alive: bool,
}

#[derive(Serialize)]
struct EvidenceJson {
    kind: &'static str,
    text: String,
}

impl From<&Evidence> for EvidenceJson {
    fn from(evidence: &Evidence) -> Self {
        Self {
            kind: evidence.word(),
            text: evidence.to_string(),
        }
    }
}

impl<'a> OrphanJson<'a> {
    pub(super) fn new(orphan: &'a Orphan, style: Style) -> Self {
        let ms_since = |at_ns: u64| style.now_ns.saturating_sub(at_ns) / 1_000_000;
        Self {
            process: (&orphan.process).into(),
            class: orphan.class.word(),
            creator: orphan.creator.clone(),
            creator_exit: orphan.creator_death.as_ref().map(Into::into),
            orphaned: orphan.orphaned_ns.map(|at| style.clock.rfc3339(at)),
            orphaned_ms: orphan.orphaned_ns.map(ms_since),
            age_ms: ms_since(orphan.process.id.start_ns),
            root: orphan.root.as_ref().map(|root| RootJson {
                who: root.clone(),
                alive: orphan.root_alive,
            }),
            parent: orphan.parent.clone(),
            state: orphan.state,
            start: StartJson::new(&orphan.command, &orphan.placement),
            gpu: HoldingJson::of(&orphan.gpu),
            evidence: orphan.evidence.iter().map(Into::into).collect(),
        }
    }
}

/// Returns the orphans as one JSON object and a newline; with what came of killing them, if that
/// was asked for.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(
    orphans: &[Orphan],
    killed: Option<&KillReport>,
    snapshot: &Snapshot,
    losses: &[Loss],
    style: Style,
) -> Result<String, serde_json::Error> {
    let json = ReportJson {
        schema: SCHEMA,
        orphans: orphans
            .iter()
            .map(|orphan| OrphanJson::new(orphan, style))
            .collect(),
        kill: killed.map(|report| KilledJson::new(report, false)),
        known: KnownJson::new(snapshot, losses, style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

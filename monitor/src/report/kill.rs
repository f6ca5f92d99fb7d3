//! Reports of a kill, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::json::{Id, MemberJson, SCHEMA, is_false};
use super::out::printable;
use super::text;
use crate::kill::{KillReport, Outcome, Release, Subject, Suspect};
use crate::loss::Incomplete;
use crate::process::{Process, Who};
use crate::words::count;

/// The report of a kill.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the output"
)]
#[derive(Serialize)]
pub(super) struct KilledJson {
    schema: &'static str,
    tree: Id,
    dry_run: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<MemberJson>,
    #[serde(flatten)]
    outcome: Outcome,
    rejected: u64,
    /// Members that whoever has asked may not end: they live on.
    #[serde(skip_serializing_if = "is_none_left_out")]
    others: usize,
    /// The root is older than tracking: what it had lost to others before is not known.
    #[serde(skip_serializing_if = "is_false")]
    inferred: bool,
    extinct: bool,
    complete: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<Incomplete>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<SuspectJson>,
    elapsed_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<Release>,
}

/// A process that looks like a former member.
#[derive(Serialize)]
struct SuspectJson {
    #[serde(flatten)]
    process: Subject,
    parent: Who,
    evidence: Vec<EvidenceJson>,
    killed: bool,
}

#[derive(Serialize)]
struct EvidenceJson {
    kind: &'static str,
    text: String,
}

impl From<&Suspect> for SuspectJson {
    fn from(suspect: &Suspect) -> Self {
        let evidence = suspect.evidence.iter().map(|shared| EvidenceJson {
            kind: shared.word(),
            text: shared.to_string(),
        });
        Self {
            process: suspect.process.clone(),
            parent: suspect.parent.clone(),
            evidence: evidence.collect(),
            killed: suspect.killed,
        }
    }
}

/// Returns the report as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(report: &KillReport, is_dry_run: bool) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string(&KilledJson::new(report, is_dry_run))? + "\n")
}

impl KilledJson {
    pub(super) fn new(report: &KillReport, is_dry_run: bool) -> Self {
        let members = if is_dry_run {
            report.members.as_slice()
        } else {
            &[]
        };
        Self {
            schema: SCHEMA,
            tree: report.root.id.into(),
            dry_run: is_dry_run,
            members: members.iter().map(Into::into).collect(),
            outcome: report.outcome.clone(),
            rejected: report.rejected,
            others: report.others,
            inferred: report.root.inferred,
            extinct: report.extinct,
            complete: report.losses.is_empty(),
            incomplete: Incomplete::all(&report.losses),
            suspects: report.suspects.iter().map(Into::into).collect(),
            elapsed_ms: report.elapsed.as_secs_f64() * 1e3,
            gone_ms: report.gone.map(|gone| gone.as_secs_f64() * 1e3),
            gpu: report.release.clone(),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_none_left_out(others: &usize) -> bool {
    *others == 0
}

/// Returns what a kill did, in words.
#[must_use]
pub fn done(report: &KillReport) -> String {
    let ms = report.elapsed.as_secs_f64() * 1e3;
    let mut text = format!(
        "tree of {}: {} killed in {ms:.1} ms{}\n",
        text::process(&report.root),
        report.outcome.killed.len(),
        match (report.is_proven(), report.extinct) {
            (true, _) => ", none of it is left",
            (false, true) => ", none that is known to belong to it is left",
            (false, false) => "",
        },
    );
    if report.others > 0 {
        let others = count(report.others, "process");
        let _ = writeln!(
            text,
            "left out, because they are not yours to end: {others}"
        );
    }
    for survivor in &report.outcome.survivors {
        let process = text::process(&Process::from(&survivor.process));
        let reason = printable(survivor.reason.as_deref().unwrap_or_default());
        let _ = writeln!(text, "still alive: {process}  {reason}");
    }
    if report.extinct && report.gone.is_none() {
        text.push_str("the memory of some of them is not released yet\n");
    }
    if let Some(release) = &report.release {
        gpu(&mut text, release);
    }
    suspects(&mut text, report);
    doubts(&mut text, report);
    text
}

/// Writes what became of the GPU memory of the killed.
fn gpu(text: &mut String, release: &Release) {
    if let Some(longest) = release.released.iter().map(|released| released.after).max() {
        let ms = longest.as_secs_f64() * 1e3;
        let count = release.released.len();
        let _ = writeln!(
            text,
            "GPU memory of {count} released, the last after {ms:.1} ms"
        );
    }
    for held in &release.held {
        let (pid, state) = (held.id.pid, printable(&held.state));
        let _ = writeln!(text, "GPU memory still held by {pid}: {state}");
    }
    if release.hung {
        text.push_str("whether GPU memory is released is not known: the driver does not answer\n");
    }
}

/// Returns what a kill would do, in words.
#[must_use]
pub fn would(report: &KillReport) -> String {
    let mut text = format!(
        "the tree of {}: {} would die\n",
        text::process(&report.root),
        count(report.members.len(), "process")
    );
    for member in &report.members {
        let _ = writeln!(
            text,
            "  {}  {}",
            text::process(member),
            why(member, &report.root)
        );
    }
    suspects(&mut text, report);
    doubts(&mut text, report);
    text
}

/// Returns why a member belongs to the tree.
fn why(member: &Process, root: &Process) -> String {
    if member.id == root.id {
        return "the root".to_owned();
    }
    let inferred = if member.inferred {
        ", inferred from its parent"
    } else {
        ""
    };
    match member.creator {
        Some(creator) => format!("created by {}{inferred}", creator.pid),
        None => "its creator is not known".to_owned(),
    }
}

/// Writes who looks like a former member, and why.
fn suspects(text: &mut String, report: &KillReport) {
    for suspect in &report.suspects {
        let process = text::process(&Process::from(&suspect.process));
        let evidence = suspect.evidence.iter().map(ToString::to_string);
        let evidence = evidence.collect::<Vec<_>>().join(", ");
        let what = if suspect.killed {
            "killed on suspicion"
        } else {
            "suspect"
        };
        let (parent, evidence) = (text::who(&suspect.parent), printable(&evidence));
        let _ = writeln!(text, "{what}: {process}  child of {parent}, {evidence}");
    }
    if report.suspects.iter().any(|suspect| !suspect.killed) {
        text.push_str(
            "suspects may have left the tree before it was watched; \
             --kill-suspects kills them too, --accept-suspects ends with 0\n",
        );
    }
}

fn doubts(text: &mut String, report: &KillReport) {
    for loss in &report.losses {
        let _ = writeln!(text, "not complete: {}", loss.advice());
    }
}

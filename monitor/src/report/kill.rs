//! Reports of a kill, as text and as JSON.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::json::{EvidenceJson, Id, MemberJson, SCHEMA, is_false};
use super::out::printable;
use super::text;
use crate::ProcessId;
use crate::kill::marks::Marks;
use crate::kill::{KillReport, Outcome, Release, Subject, Suspect};
use crate::loss::Incomplete;
use crate::process::{Process, Who};
use crate::words::count;

/// Returns what is said of one member.
fn marked(marks: &Marks, id: &ProcessId) -> String {
    let mut text = String::new();
    if let Some(evidence) = marks.deliberate.get(id) {
        let evidence: Vec<_> = evidence.iter().map(ToString::to_string).collect();
        let evidence = printable(&evidence.join(", "));
        let _ = write!(text, "; looks deliberate: {evidence} (--spare {})", id.pid);
    }
    if marks.mps_clients.contains(id) {
        text.push_str("; a client of CUDA MPS (--force or --before-kill)");
    }
    text
}

/// The report of a kill.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the output"
)]
#[derive(Serialize, JsonSchema)]
pub(crate) struct KilledJson {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "kill"))]
    kind: &'static str,
    tree: Id,
    dry_run: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<MemberJson>,
    /// Members that are spared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spared: Vec<Who>,
    /// Members that selectors have left out.
    #[serde(skip_serializing_if = "is_nothing")]
    not_shown: usize,
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
#[derive(Serialize, JsonSchema)]
struct SuspectJson {
    #[serde(flatten)]
    process: Subject,
    parent: Who,
    evidence: Vec<EvidenceJson>,
    killed: bool,
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

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_nothing(number: &usize) -> bool {
    *number == 0
}

/// The reports of several kills.
#[derive(Serialize, JsonSchema)]
pub(crate) struct KillsJson {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "kills"))]
    kind: &'static str,
    dry_run: bool,
    kills: Vec<KilledJson>,
    extinct: bool,
    complete: bool,
}

/// Returns the report of each tree, with what is said of its members, as one JSON object
/// and a newline: that of the tree, where `is_one` says that one alone was meant.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub(crate) fn json(
    reports: &[(KillReport, Marks)],
    is_one: bool,
    is_dry_run: bool,
) -> Result<String, serde_json::Error> {
    let mut kills: Vec<_> = reports
        .iter()
        .map(|(report, marks)| {
            let mut json = KilledJson::new(report, is_dry_run);
            json.not_shown = marks.not_shown;
            json.spared.clone_from(&marks.spared);
            for (member, process) in json.members.iter_mut().zip(&report.members) {
                let evidence = marks.deliberate.get(&process.id);
                let evidence = evidence.into_iter().flatten().map(Into::into);
                member.mark(evidence.collect(), marks.mps_clients.contains(&process.id));
            }
            json
        })
        .collect();
    if is_one && let Some(kill) = kills.pop() {
        return Ok(serde_json::to_string(&kill)? + "\n");
    }
    let json = KillsJson {
        schema: SCHEMA,
        kind: "kills",
        dry_run: is_dry_run,
        extinct: kills.iter().all(|kill| kill.extinct),
        complete: kills.iter().all(|kill| kill.complete),
        kills,
    };
    Ok(serde_json::to_string(&json)? + "\n")
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
            kind: "kill",
            tree: report.root.id.into(),
            dry_run: is_dry_run,
            members: members.iter().map(Into::into).collect(),
            spared: Vec::new(),
            not_shown: 0,
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
    of_whom(report, &format!("tree of {}", text::process(&report.root)))
}

/// Returns what the kill of several trees as one did, in words.
#[must_use]
pub fn done_all(report: &KillReport, trees: usize) -> String {
    of_whom(report, &count(trees, "tree"))
}

fn of_whom(report: &KillReport, whom: &str) -> String {
    let ms = report.elapsed.as_secs_f64() * 1e3;
    let mut text = format!(
        "{whom}: {} killed in {ms:.1} ms{}\n",
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
    if let Some(why) = &release.failed {
        let why = printable(why);
        let _ = writeln!(
            text,
            "whether GPU memory is released is not known: the driver fails: {why}"
        );
    }
}

/// Returns what a kill would do, in words.
#[must_use]
pub(crate) fn would(report: &KillReport, marks: &Marks) -> String {
    let not_shown = marks.not_shown;
    let mut text = format!(
        "the tree of {}: {} would die\n",
        text::process(&report.root),
        count(report.members.len() + not_shown, "process")
    );
    for member in &report.members {
        let _ = writeln!(
            text,
            "  {}  {}{}",
            text::process(member),
            why(member, &report.root),
            marked(marks, &member.id)
        );
    }
    for spared in &marks.spared {
        let _ = writeln!(text, "  {}  is spared", text::who(spared));
    }
    if not_shown > 0 {
        let _ = writeln!(text, "  and {not_shown} that the selectors do not mean");
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

//! Orphans, as text and as JSON.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::ended::{Ended, Spared};
use super::holding::{self, HoldingJson, size};
use super::json::{EvidenceJson, ProcessJson, SCHEMA};
use super::kill::KilledJson;
use super::out::{fit, printable};
use super::text::{self, Tone, duration_ms, paint};
use super::tree::{KnownJson, StartJson, Style, command, placed};
use super::zombies::{self, ZombieJson};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::loss::Loss;
use crate::orphan::{Evidence, Orphan, Subtree, Verdict};
use crate::proc::Zombie;
use crate::process::json::ExitJson;
use crate::process::{Name, Process, Who};
use crate::words::count;

/// Everything that is said about orphans.
#[derive(Debug)]
pub struct OrphansReport<'a> {
    /// Those that are shown, oldest first.
    pub orphans: &'a [Orphan],
    /// The number of those that are meant as well and not shown.
    pub not_shown: &'a BTreeMap<Verdict, usize>,
    /// What came of killing them, if that was asked for.
    pub ended: Option<&'a Ended>,
    /// The snapshot that the lineage is from.
    pub snapshot: &'a Snapshot,
    /// Zombies, where they were asked for.
    pub zombies: Option<&'a [Zombie]>,
    /// The losses.
    pub losses: &'a [Loss],
}

/// Returns the orphans as text.
#[must_use]
pub fn text(report: &OrphansReport<'_>, style: Style) -> String {
    let mut text = String::new();
    let forest = Forest::new(report.snapshot.records.iter().copied());
    for (chain, alike) in groups(report.orphans, &forest, style) {
        some(&mut text, &chain, &alike, style);
    }
    let lineage = zombies::Lineage::new(&forest);
    for zombie in report.zombies.unwrap_or_default() {
        text.push_str(&zombies::line(zombie, &lineage, style.moment()));
    }
    let mut text = fit(&text, style.columns);
    text.push_str(&counts(report.orphans.is_empty(), report.not_shown));
    text::incomplete(&mut text, style.colour, report.losses);
    text
}

/// Returns `no orphans; 3 that look deliberate and 2 older than tracking: --all`.
fn counts(is_empty: bool, not_shown: &BTreeMap<Verdict, usize>) -> String {
    let kind = |(verdict, number): (&Verdict, &usize)| match verdict {
        Verdict::Leaked => format!("{number} leaked"),
        Verdict::Left => format!("{number} left"),
        Verdict::Deliberate if *number == 1 => "1 that looks deliberate".to_owned(),
        Verdict::Deliberate => format!("{number} that look deliberate"),
        Verdict::Inferred => format!("{number} older than tracking"),
    };
    let kinds: Vec<_> = not_shown.iter().map(kind).collect();
    match (is_empty, kinds.join(" and ")) {
        (true, kinds) if kinds.is_empty() => "no orphans\n".to_owned(),
        (false, kinds) if kinds.is_empty() => String::new(),
        (true, kinds) => format!("no orphans; {kinds}: --all\n"),
        (false, kinds) => format!("not shown: {kinds}: --all\n"),
    }
}

/// Pids of equal orphans that are named.
const NAMED_MAX: usize = 8;

/// Puts together orphans that differ in nothing but who they are: left alike, by a creator of the
/// same name that died alike, running the same above the same. Each group comes with the names of
/// what stands below it in one line.
fn groups<'a>(
    orphans: &'a [Orphan],
    forest: &Forest,
    style: Style,
) -> Vec<(Vec<Name>, Vec<&'a Orphan>)> {
    let mut groups: Vec<(Vec<Name>, Vec<&Orphan>)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for orphan in orphans {
        let chain = chain(orphan.process.id, forest);
        let creator = orphan.creator.as_ref().and_then(|who| who.name.as_ref());
        let death = orphan.creator_death.as_ref();
        let death = death.map(|death| (death.code(), death.signal(), death.cause()));
        let evidence: Vec<_> = orphan.evidence.iter().map(Evidence::word).collect();
        let key = format!(
            "{:?}",
            (
                (orphan.verdict, orphan.process.uid, &orphan.process.name),
                (&orphan.command, &orphan.placement, &chain),
                (creator, death),
                (orphan.subtree.processes, &orphan.subtree.gpu, evidence),
                (orphan.root_alive, &orphan.parent),
            )
        );
        match known.get(&key) {
            Some(at) if !style.full => groups[*at].1.push(orphan),
            _ => {
                known.insert(key, groups.len());
                groups.push((chain, vec![orphan]));
            }
        }
    }
    groups
}

/// Returns the names of an orphan and of what stands below it, as long as that is one line.
fn chain(top: ProcessId, forest: &Forest) -> Vec<Name> {
    let mut names = Vec::new();
    let mut at = Some(top);
    while let Some(id) = at
        && let Some(record) = forest.record(&id)
    {
        names.push(Process::of_record(id, record).name.unwrap_or_default());
        let mut living = forest.children(&id).iter().filter(|id| forest.is_live(id));
        at = living.next().copied();
        // What branches is no line.
        if living.next().is_some() {
            names.truncate(1);
            break;
        }
    }
    names
}

/// Adds a head line for orphans that are alike, and what explains it below.
fn some(text: &mut String, chain: &[Name], alike: &[&Orphan], style: Style) {
    let orphan = alike[0];
    let verdict = mark(orphan.verdict, style);
    let shown = command(&orphan.command, style);
    let mut sum = Subtree::default();
    for orphan in alike {
        sum.add(&orphan.subtree);
    }
    let gpu = holding::text(&sum.gpu);
    let mut who = text::process(&orphan.process);
    let mut more = String::new();
    if alike.len() > 1 {
        for name in chain.iter().skip(1) {
            let _ = write!(who, " -> {}", printable(name));
        }
        let others = alike[1..].iter().take(NAMED_MAX);
        let others: Vec<_> = others
            .map(|orphan| orphan.process.id.pid.to_string())
            .collect();
        let _ = write!(more, "  ({} times: also {}", alike.len(), others.join(", "));
        let unnamed = alike.len() - 1 - others.len();
        if unnamed > 0 {
            let _ = write!(more, " and {unnamed} more");
        }
        more.push(')');
    }
    let _ = writeln!(text, "{verdict} {who}  {shown}{gpu}{more}");
    // Creators and roots of the others are others, perhaps.
    let plural = |is_same: &dyn Fn(&&&Orphan) -> bool| {
        let all = alike.iter().filter(is_same).count() == alike.len();
        if all { "" } else { "s like" }
    };
    let mut story = vec![weight(&sum)];
    if let Some(creator) = &orphan.creator {
        let how = orphan.creator_death.as_ref().map(text::how);
        let since = orphan
            .orphaned_ns
            .map(|at| duration_ms(style.now_ns.saturating_sub(at) / 1_000_000));
        let (how, since) = (how.unwrap_or_default(), since.unwrap_or_default());
        let like = plural(&|other| other.creator == orphan.creator);
        story.push(format!(
            "creator{like} {} died {since} ago: {how}",
            text::who(creator)
        ));
    }
    if let Some(root) = &orphan.root {
        let state = if orphan.root_alive {
            "lives"
        } else {
            "is dead"
        };
        let like = plural(&|other| other.root == orphan.root);
        story.push(format!("root{like} {} {state}", text::who(root)));
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

/// Returns the word for how an orphan was left, in a column of its own.
pub(super) fn mark(verdict: Verdict, style: Style) -> String {
    let tone = match verdict {
        Verdict::Leaked => Tone::Bad,
        Verdict::Left => Tone::Warn,
        Verdict::Deliberate | Verdict::Inferred => Tone::Faint,
    };
    paint(style.colour, tone, &format!("{:<10}", verdict.word()))
}

/// Returns `3 processes, 1.5 GiB, 2.0 s on processors`.
fn weight(subtree: &Subtree) -> String {
    format!(
        "{}, {}, {} on processors",
        count(subtree.processes, "process"),
        size(subtree.resident_bytes),
        duration_ms(subtree.cpu_ms)
    )
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ReportJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "orphans"))]
    kind: &'static str,
    orphans: Vec<OrphanJson<'a>>,
    /// By verdict.
    not_shown: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zombies: Option<Vec<ZombieJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kill: Option<KilledJson>,
    /// The orphans whose trees were killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    killed_trees: Option<Vec<Who>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spared: Option<&'a [Spared]>,
    #[serde(flatten)]
    known: KnownJson,
}

/// An orphan.
#[derive(Serialize, JsonSchema)]
pub(super) struct OrphanJson<'a> {
    #[serde(flatten)]
    process: ProcessJson,
    verdict: &'static str,
    /// The root of its tree is dead too; absent when the root is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    stranded: Option<bool>,
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
    subtree: SubtreeJson<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<EvidenceJson>,
}

#[derive(Serialize, JsonSchema)]
struct RootJson {
    #[serde(flatten)]
    who: Who,
    alive: bool,
}

/// The orphan and everything below it.
#[derive(Serialize, JsonSchema)]
struct SubtreeJson<'a> {
    processes: usize,
    resident_bytes: u64,
    cpu_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<HoldingJson<'a>>,
}

impl<'a> From<&'a Subtree> for SubtreeJson<'a> {
    fn from(subtree: &'a Subtree) -> Self {
        Self {
            processes: subtree.processes,
            resident_bytes: subtree.resident_bytes,
            cpu_ms: subtree.cpu_ms,
            gpu: HoldingJson::of(&subtree.gpu),
        }
    }
}

impl<'a> OrphanJson<'a> {
    pub(super) fn new(orphan: &'a Orphan, style: Style) -> Self {
        let ms_since = |at_ns: u64| style.now_ns.saturating_sub(at_ns) / 1_000_000;
        Self {
            process: (&orphan.process).into(),
            verdict: orphan.verdict.word(),
            stranded: orphan.root.as_ref().map(|_| !orphan.root_alive),
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
            subtree: (&orphan.subtree).into(),
            evidence: orphan.evidence.iter().map(Into::into).collect(),
        }
    }
}

/// Returns the orphans as one JSON object and a newline; with what came of killing them, if that
/// was asked for.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(report: &OrphansReport<'_>, style: Style) -> Result<String, serde_json::Error> {
    let orphans = report.orphans.iter();
    let not_shown = report.not_shown.iter();
    let killed = report.ended.and_then(|ended| ended.report.as_ref());
    let json = ReportJson {
        schema: SCHEMA,
        kind: "orphans",
        orphans: orphans
            .map(|orphan| OrphanJson::new(orphan, style))
            .collect(),
        not_shown: not_shown
            .map(|(verdict, number)| (verdict.word(), *number))
            .collect(),
        zombies: report.zombies.map(|zombies| {
            let forest = Forest::new(report.snapshot.records.iter().copied());
            let lineage = zombies::Lineage::new(&forest);
            let zombies = zombies.iter();
            zombies
                .map(|zombie| ZombieJson::new(zombie, &lineage, style.moment()))
                .collect()
        }),
        kill: killed.map(|report| KilledJson::new(report, false)),
        killed_trees: report.ended.map(Ended::roots),
        spared: report.ended.map(|ended| ended.spared.as_slice()),
        known: KnownJson::new(report.snapshot, report.losses, style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_shown_is_counted() {
        let counts = |is_empty, numbers: &[(Verdict, usize)]| {
            super::counts(is_empty, &numbers.iter().copied().collect())
        };
        let hidden = [(Verdict::Inferred, 2), (Verdict::Deliberate, 3)];
        assert_eq!(
            counts(true, &hidden),
            "no orphans; 3 that look deliberate and 2 older than tracking: --all\n"
        );
        assert_eq!(
            counts(false, &[(Verdict::Deliberate, 1)]),
            "not shown: 1 that looks deliberate: --all\n"
        );
        assert_eq!(counts(true, &[]), "no orphans\n");
        assert_eq!(counts(false, &[]), "");
    }
}

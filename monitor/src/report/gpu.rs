//! Who holds GPUs, as text and as JSON: GPU, memory, process, where that comes from, orphan or not,
//! and a total for each tree.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::ended::{Ended, Spared};
use super::holding::{self, HoldingJson, size};
use super::json::{ProcessJson, SCHEMA};
use super::kill::KilledJson;
use super::orphans::{OrphanJson, mark};
use super::out::{fit, printable};
use super::text::{self, Tone, paint};
use super::tree::{KnownJson, StartJson, Style, command};
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::nvml::{Answer, Gpu};
use crate::gpu::{Holding, Stranger, Survey};
use crate::kernel::snapshot::Snapshot;
use crate::loss::Loss;
use crate::orphan::{self, Orphan};
use crate::proc::{self, CommandLine, Commands, Placement};
use crate::process::{Process, Who};
use crate::words::count;

/// A process that holds a GPU, and where it comes from.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The process.
    pub process: Process,
    /// The GPUs and the GPU memory that it holds.
    pub holding: Holding,
    /// The command line.
    pub command: CommandLine,
    /// Control group, unit, container.
    pub placement: Placement,
    /// Its creators, nearest first.
    pub lineage: Vec<Ancestor>,
    /// The root of its tree.
    pub root: Ancestor,
}

/// A creator of a process, or a creator of that one, and so on.
#[derive(Debug, Clone)]
pub struct Ancestor {
    /// The process.
    pub who: Who,
    /// True if it is live.
    pub alive: bool,
}

/// Everything that is said about GPUs.
#[derive(Debug)]
pub struct GpuReport<'a> {
    /// The survey.
    pub survey: &'a Survey,
    /// Processes that hold something, oldest first.
    pub holders: &'a [Holder],
    /// For each of them that is an orphan, or stands below one, that orphan.
    pub orphans: &'a HashMap<ProcessId, &'a Orphan>,
    /// What came of killing the orphans, if that was asked for.
    pub ended: Option<&'a Ended>,
    /// The snapshot that the lineage is from.
    pub snapshot: &'a Snapshot,
    /// The losses.
    pub losses: &'a [Loss],
}

/// Describes the holders and where they come from; leaves out what has died meanwhile.
#[must_use]
pub fn describe(forest: &Forest, survey: &Survey) -> Vec<Holder> {
    let commands = Commands::default();
    let mut found: Vec<Holder> = survey
        .holders
        .iter()
        .filter_map(|(id, holding)| {
            let record = forest.record(id)?;
            let ancestor = |id| {
                let record = forest.record(&id)?;
                Some(Ancestor {
                    who: Process::of_record(id, record).who(),
                    alive: forest.is_live(&id),
                })
            };
            Some(Holder {
                process: Process::of_record(*id, record),
                holding: holding.clone(),
                command: commands.of(id.pid)?,
                placement: proc::placement(*id)?,
                lineage: forest
                    .ancestors(id)
                    .into_iter()
                    .filter_map(ancestor)
                    .collect(),
                root: ancestor(orphan::root_of(forest, *id))?,
            })
        })
        .collect();
    found.sort_by_key(|holder| holder.process.id);
    found
}

/// Writes memory of a pid that no living process has, and who keeps it.
fn one_stranger(text: &mut String, stranger: &Stranger) {
    let Stranger { pid, memory, .. } = stranger;
    let bytes = memory.bytes.map_or_else(|| "memory".to_owned(), size);
    let keepers = stranger.kept_by.iter().map(|id| id.pid.to_string());
    let keepers: Vec<_> = keepers.collect();
    let why = if keepers.is_empty() {
        "no living process of this host has this pid".to_owned()
    } else {
        let keepers = keepers.join(", ");
        format!("it is dead; kept by {keepers}, with the descriptors that it has inherited")
    };
    let _ = writeln!(text, "{pid}  {bytes} on {}: {why}", printable(&memory.gpu));
}

/// Returns the report as text.
#[must_use]
pub fn text(report: &GpuReport<'_>, style: Style) -> String {
    let mut text = String::new();
    match &report.survey.nvml {
        Answer::Gpus(gpus) => gpus.iter().for_each(|gpu| one_gpu(&mut text, gpu)),
        Answer::Absent(why) => {
            let line = format!("no NVIDIA memory is known: {why}\n");
            text.push_str(&paint(style.colour, Tone::Faint, &line));
        }
        Answer::Failed(why) => {
            let line = format!("NVIDIA's management library failed: {why}\n");
            text.push_str(&paint(style.colour, Tone::Bad, &line));
        }
        Answer::Hung(ms) => {
            let line = format!("NVIDIA's driver has not answered for {ms} ms\n");
            text.push_str(&paint(style.colour, Tone::Bad, &line));
        }
        Answer::NotAsked => {}
    }
    if report.holders.is_empty() && report.survey.strangers.is_empty() {
        text.push_str("no process holds a GPU\n");
    }
    for holder in report.holders {
        let orphan = report.orphans.get(&holder.process.id);
        one_holder(&mut text, holder, orphan.copied(), style);
    }
    for stranger in &report.survey.strangers {
        one_stranger(&mut text, stranger);
    }
    totals(&mut text, report.holders);
    let mut text = fit(&text, style.columns);
    text::incomplete(&mut text, style.colour, report.losses);
    text
}

fn one_gpu(text: &mut String, gpu: &Gpu) {
    let name = gpu
        .name
        .as_deref()
        .unwrap_or("a GPU that does not tell its name");
    let _ = write!(text, "GPU {} {}", gpu.index, printable(name));
    if let (Some(used), Some(total)) = (gpu.used_bytes, gpu.total_bytes) {
        let _ = write!(text, ", {} of {} in use", size(used), size(total));
    }
    if let Some(uuid) = &gpu.uuid {
        let _ = write!(text, ", {}", printable(uuid));
    }
    if gpu.is_partitioned {
        text.push_str(", partitioned");
    }
    text.push('\n');
    for error in &gpu.errors {
        let _ = writeln!(text, "  not asked: {}", printable(error));
    }
}

fn one_holder(text: &mut String, holder: &Holder, orphan: Option<&Orphan>, style: Style) {
    let state = orphan.map(|orphan| mark(orphan.verdict, style));
    let state = state.unwrap_or_else(|| format!("{:<10}", "held"));
    let command = command(&holder.command, style);
    let held = holding::text(&holder.holding);
    let _ = writeln!(
        text,
        "{state} {}  {command}{held}",
        text::process(&holder.process)
    );
    if let Some(orphan) = orphan.filter(|orphan| orphan.process.id != holder.process.id) {
        let line = format!(
            "           below the orphan {}\n",
            text::process(&orphan.process)
        );
        text.push_str(&paint(style.colour, Tone::Faint, &line));
    }
    let mut line: Vec<String> = Vec::new();
    for ancestor in &holder.lineage {
        let mark = if ancestor.alive { "" } else { "\u{2020} " };
        line.push(format!("{mark}{}", text::who(&ancestor.who)));
    }
    if !line.is_empty() {
        let line = format!("           created by {}\n", line.join(" < "));
        text.push_str(&paint(style.colour, Tone::Faint, &line));
    }
}

/// Adds the memory by tree.
fn totals(text: &mut String, holders: &[Holder]) {
    for total in by_tree(holders) {
        let bytes = total
            .bytes
            .map_or_else(|| "no memory told".to_owned(), size);
        let state = if total.root.alive { "alive" } else { "dead" };
        let _ = writeln!(
            text,
            "tree of {} ({state}): {bytes}, {}",
            text::who(&total.root.who),
            count(total.processes, "process")
        );
    }
}

struct Total {
    root: Ancestor,
    bytes: Option<u64>,
    processes: usize,
}

fn by_tree(holders: &[Holder]) -> Vec<Total> {
    let mut totals: BTreeMap<ProcessId, Total> = BTreeMap::new();
    for holder in holders {
        let total = totals.entry(holder.root.who.id).or_insert_with(|| Total {
            root: holder.root.clone(),
            bytes: None,
            processes: 0,
        });
        total.processes += 1;
        if let Some(bytes) = holder.holding.memory_bytes() {
            total.bytes = Some(total.bytes.unwrap_or(0).saturating_add(bytes));
        }
    }
    totals.into_values().collect()
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ReportJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "gpu"))]
    kind: &'static str,
    nvml: NvmlJson<'a>,
    gpus: &'a [Gpu],
    holders: Vec<HolderJson<'a>>,
    /// Pids that the driver names and no living process has.
    strangers: &'a [Stranger],
    trees: Vec<TotalJson>,
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

#[derive(Serialize, JsonSchema)]
struct NvmlJson<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<u64>,
}

impl<'a> From<&'a Answer> for NvmlJson<'a> {
    fn from(answer: &'a Answer) -> Self {
        let (state, detail, after_ms) = match answer {
            Answer::NotAsked => ("not_asked", None, None),
            Answer::Absent(why) => ("absent", Some(why.as_str()), None),
            Answer::Failed(why) => ("failed", Some(why.as_str()), None),
            Answer::Hung(ms) => ("hung", None, Some(*ms)),
            Answer::Gpus(_) => ("ok", None, None),
        };
        Self {
            state,
            detail,
            after_ms,
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct HolderJson<'a> {
    #[serde(flatten)]
    process: ProcessJson,
    #[serde(flatten)]
    holding: Option<HoldingJson<'a>>,
    #[serde(flatten)]
    start: StartJson<'a>,
    lineage: Vec<AncestorJson>,
    root: AncestorJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphan: Option<OrphanJson<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct AncestorJson {
    #[serde(flatten)]
    who: Who,
    alive: bool,
}

impl From<&Ancestor> for AncestorJson {
    fn from(ancestor: &Ancestor) -> Self {
        Self {
            who: ancestor.who.clone(),
            alive: ancestor.alive,
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct TotalJson {
    root: AncestorJson,
    processes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
}

/// Returns the report as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(report: &GpuReport<'_>, style: Style) -> Result<String, serde_json::Error> {
    let holders = report.holders.iter().map(|holder| HolderJson {
        process: (&holder.process).into(),
        holding: HoldingJson::of(&holder.holding),
        start: StartJson::new(&holder.command, &holder.placement),
        lineage: holder.lineage.iter().map(Into::into).collect(),
        root: (&holder.root).into(),
        orphan: report
            .orphans
            .get(&holder.process.id)
            .map(|orphan| OrphanJson::new(orphan, style)),
    });
    let trees = by_tree(report.holders).into_iter().map(|total| TotalJson {
        root: (&total.root).into(),
        processes: total.processes,
        memory_bytes: total.bytes,
    });
    let killed = report.ended.and_then(|ended| ended.report.as_ref());
    let json = ReportJson {
        schema: SCHEMA,
        kind: "gpu",
        nvml: (&report.survey.nvml).into(),
        gpus: report.survey.gpus(),
        holders: holders.collect(),
        strangers: &report.survey.strangers,
        trees: trees.collect(),
        kill: killed.map(|report| KilledJson::new(report, false)),
        killed_trees: report.ended.map(Ended::roots),
        spared: report.ended.map(|ended| ended.spared.as_slice()),
        known: KnownJson::new(report.snapshot, report.losses, style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

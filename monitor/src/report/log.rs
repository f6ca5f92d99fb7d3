//! The flight recorder, as text and as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;

use lifemon_ebpf::{HELD_GPU, LogEntry};
use schemars::JsonSchema;
use serde::Serialize;

use super::json::{ProcessJson, SCHEMA};
use super::text::{self, Tone, paint};
use super::tree::{KnownJson, Style};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::loss::Loss;
use crate::orphan;
use crate::process::json::ExitJson;
use crate::process::{Death, Name, Process, Sender, Who, comm};
use crate::words::count;

/// Deaths, and where they are from.
#[derive(Debug)]
pub struct Report<'a> {
    /// Those that are shown, the oldest first.
    pub entries: &'a [LogEntry],
    /// The whole log.
    pub log: &'a Log,
    /// The lineage.
    pub forest: &'a Forest,
    /// The snapshot that it is from.
    pub snapshot: &'a Snapshot,
    /// The losses.
    pub losses: &'a [Loss],
}

impl Report<'_> {
    /// Returns the names of those who died.
    fn names(&self) -> HashMap<ProcessId, Option<Name>> {
        let entries = self.log.entries.iter();
        entries
            .map(|entry| (entry.process, comm(&entry.name)))
            .collect()
    }
}

/// Returns who a process was, from the lineage or from its own death.
fn who(id: ProcessId, forest: &Forest, names: &HashMap<ProcessId, Option<Name>>) -> Who {
    let of_record = |record| Process::of_record(id, record).name;
    let known = forest.record(&id).and_then(of_record);
    let name = known.or_else(|| names.get(&id).cloned().flatten());
    Who { id, name }
}

fn process(entry: &LogEntry) -> Process {
    Process {
        name: comm(&entry.name),
        uid: Some(entry.uid),
        ns_pid: Some(entry.ns_pid),
        ..Process::unknown(entry.process)
    }
}

/// Returns the root of the tree of who sent the signal, while that is known.
fn sender_root(death: &Death, forest: &Forest) -> Option<RootJson> {
    let Some(Sender::Process(sender)) = &death.sender else {
        return None;
    };
    forest.record(&sender.id)?;
    let root = orphan::root_of(forest, sender.id);
    let record = forest.record(&root)?;
    Some(RootJson {
        who: Process::of_record(root, record).who(),
        alive: forest.is_live(&root),
    })
}

/// Returns the deaths as text, a line each.
#[must_use]
pub fn text(report: &Report<'_>, style: Style) -> String {
    let mut text = String::new();
    let names = report.names();
    for entry in report.entries {
        let death = Death::of_log(entry);
        let time = style.clock.local(entry.time_ns);
        let _ = write!(
            text,
            "{}  {}  {}",
            paint(style.colour, Tone::Faint, &time),
            text::process(&process(entry)),
            paint(style.colour, Tone::Bad, &text::how(&death)),
        );
        if let Some(root) = sender_root(&death, report.forest) {
            let _ = write!(text, " (of the tree of {})", text::who(&root.who));
        }
        let _ = write!(text, ", uid {}", entry.uid);
        if !entry.creator.is_none() {
            let creator = who(entry.creator, report.forest, &names);
            let _ = write!(text, ", created by {}", text::who(&creator));
        }
        if entry.children > 0 {
            let left = count(entry.children, "child");
            let left = if entry.children == 1 {
                left
            } else {
                format!("{} children", entry.children)
            };
            let _ = write!(text, ", left {left} behind");
        }
        if entry.flags & HELD_GPU != 0 {
            text.push_str(", had a GPU open");
        }
        text.push('\n');
    }
    if report.entries.is_empty() {
        text.push_str("no such death was recorded\n");
    }
    if report.log.overwritten > 0 {
        let line = format!(
            "{} recorded, {} overwritten by later ones\n",
            count(report.log.recorded, "death"),
            report.log.overwritten
        );
        text.push_str(&paint(style.colour, Tone::Faint, &line));
    }
    text::incomplete(&mut text, style.colour, report.losses);
    text
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct LogJson {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "log"))]
    kind: &'static str,
    entries: Vec<EntryJson>,
    recorded: u64,
    overwritten: u64,
    capacity: u32,
    /// When the oldest death was that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
    #[serde(flatten)]
    known: KnownJson,
}

#[derive(Serialize, JsonSchema)]
struct EntryJson {
    time: String,
    process: ProcessJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<Who>,
    exit: ExitJson,
    /// The root of the tree of who sent the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_root: Option<RootJson>,
    children: u64,
    held_gpu: bool,
}

#[derive(Serialize, JsonSchema)]
struct RootJson {
    #[serde(flatten)]
    who: Who,
    alive: bool,
}

/// Returns the deaths as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(report: &Report<'_>, style: Style) -> Result<String, serde_json::Error> {
    let names = report.names();
    let entry = |entry: &LogEntry| {
        let death = Death::of_log(entry);
        EntryJson {
            time: style.clock.rfc3339(entry.time_ns),
            process: (&process(entry)).into(),
            creator: (!entry.creator.is_none()).then(|| who(entry.creator, report.forest, &names)),
            sender_root: sender_root(&death, report.forest),
            exit: death.into(),
            children: entry.children,
            held_gpu: entry.flags & HELD_GPU != 0,
        }
    };
    let oldest = report.log.entries.first();
    let json = LogJson {
        schema: SCHEMA,
        kind: "log",
        entries: report.entries.iter().map(entry).collect(),
        recorded: report.log.recorded,
        overwritten: report.log.overwritten,
        capacity: report.log.capacity,
        oldest: oldest.map(|entry| style.clock.rfc3339(entry.time_ns)),
        known: KnownJson::new(report.snapshot, report.losses, style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

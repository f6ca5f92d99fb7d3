//! One process, explained: a screen of text, or one JSON object.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::holding::{self, HoldingJson, size};
use super::json::{MemberJson, SCHEMA};
use super::orphans::OrphanJson;
use super::out::printable;
use super::text::{self, Tone, duration_ms, paint};
use super::tree::{EntryJson, KnownJson, Style, command, live_json, placed};
use super::zombies::{self, Lineage, ZombieJson};
use crate::explain::{Ancestor, Explanation, Holds, Waiter};
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::loss::Loss;
use crate::orphan::Subtree;
use crate::process::Who;
use crate::process::json::ExitJson;
use crate::words::count;

/// Creators that the text names.
const CREATORS_SHOWN: usize = 6;

/// An explanation, and what it is from.
#[derive(Debug)]
pub struct Report<'a> {
    /// The explanation.
    pub explanation: &'a Explanation,
    /// The lineage.
    pub forest: &'a Forest,
    /// The snapshot that it is from.
    pub snapshot: &'a Snapshot,
    /// The losses.
    pub losses: &'a [Loss],
}

/// Returns the explanation as text.
#[must_use]
pub fn text(report: &Report<'_>, style: Style) -> String {
    let it = report.explanation;
    let mut text = text::process(&it.process);
    if let Some(live) = &it.live {
        let _ = write!(text, "  {}", command(&live.command, style));
    }
    text.push('\n');
    let mut line = |word: &str, what: &str| {
        let word = paint(style.colour, Tone::Faint, &format!("  {word:<11}"));
        let _ = writeln!(text, "{word}{what}");
    };
    line("is", &state(it, style));
    if let Some(zombie) = &it.zombie {
        let told = zombies::line(zombie, &Lineage::new(report.forest), style.moment());
        line("", told.trim());
    }
    let creators = it.lineage.iter().take(CREATORS_SHOWN);
    for (index, creator) in creators.enumerate() {
        let word = if index == 0 {
            "created by"
        } else {
            "  that by"
        };
        line(word, &ancestor(creator, style));
    }
    if it.lineage.is_empty() {
        line("created by", "nobody that is known");
    }
    if let Some(root) = &it.root {
        line("root", &ancestor(root, style));
    }
    line("verdict", &verdict(it));
    line("holds", &held(&it.own, &it.own_holds));
    if it.subtree.processes > it.own.processes {
        let below = count(it.subtree.processes, "process");
        let all = held(&it.subtree, &it.subtree_holds);
        line("subtree", &format!("{below}: {all}"));
    }
    for waiter in &it.waiters {
        let now = if waiter.waits_now { ", waits now" } else { "" };
        line(
            "waited for",
            &format!("by {} ({}{now})", text::who(&waiter.who), waiter.how),
        );
    }
    line("kill", &kill(it));
    text::incomplete(&mut text, style.colour, report.losses);
    text
}

/// Returns whether it is alive, and what else is known of that.
fn state(it: &Explanation, style: Style) -> String {
    if let Some(died) = &it.died {
        let since = duration_ms(style.now_ns.saturating_sub(died.at_ns) / 1_000_000);
        return format!("dead for {since}: {}", text::how(&died.death));
    }
    let Some(live) = &it.live else {
        return if it.zombie.is_some() {
            "dead, and not reaped".to_owned()
        } else {
            "dying".to_owned()
        };
    };
    let age = style.now_ns.saturating_sub(it.process.id.start_ns) / 1_000_000;
    let mut text = format!("alive for {}, state {}", duration_ms(age), live.state);
    if let Some(channel) = &it.wait_channel {
        let _ = write!(text, " in {}", printable(channel));
    }
    if let Some(uid) = it.process.uid {
        let _ = write!(text, ", uid {uid}");
    }
    text + &placed(&live.placement)
}

fn ancestor(ancestor: &Ancestor, style: Style) -> String {
    let who = text::who(&ancestor.who);
    match &ancestor.died {
        None => format!("{who}, which lives"),
        Some(died) => {
            let since = duration_ms(style.now_ns.saturating_sub(died.at_ns) / 1_000_000);
            format!(
                "\u{2020} {who}, which died {since} ago: {}",
                text::how(&died.death)
            )
        }
    }
}

fn verdict(it: &Explanation) -> String {
    if let Some(orphan) = &it.orphan {
        let mut text = orphan.verdict.word().to_owned();
        let evidence = orphan.evidence.iter();
        let evidence: Vec<_> = evidence.map(|one| printable(&one.to_string())).collect();
        if !evidence.is_empty() {
            let _ = write!(text, ": {}", evidence.join(", "));
        } else if let (Some(creator), Some(death)) = (&orphan.creator, &orphan.creator_death) {
            let _ = write!(text, ": {} {}", text::who(creator), text::how(death));
        }
        return text;
    }
    match (&it.below, it.died.is_some() || it.zombie.is_some()) {
        (_, true) => "none: it is dead".to_owned(),
        (Some(orphan), false) => format!("no orphan; below the orphan {}", text::who(orphan)),
        (None, false) => "no orphan: its creator lives".to_owned(),
    }
}

fn held(sum: &Subtree, holds: &Holds) -> String {
    let mut parts = vec![
        size(sum.resident_bytes),
        format!("{} on processors", duration_ms(sum.cpu_ms)),
    ];
    let gpu = holding::text(&sum.gpu);
    if !gpu.is_empty() {
        parts.push(gpu.trim().to_owned());
    }
    let reachable = holds.sockets.iter();
    parts.extend(reachable.map(|socket| format!("{} port {}", socket.protocol, socket.port)));
    for lock in &holds.locks {
        let path = lock.path.as_ref().map(|path| path.display().to_string());
        let path = path.unwrap_or_else(|| "a file that is not open".to_owned());
        parts.push(format!("{} lock on {}", lock.kind, printable(&path)));
    }
    parts.join(", ")
}

fn kill(it: &Explanation) -> String {
    match &it.refusal {
        Some(refusal) => format!("refused: {}", printable(refusal)),
        None if it.would_die == 0 => "nothing of it is alive".to_owned(),
        None => format!("would end {}", count(it.would_die, "process")),
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ExplainJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "explain"))]
    kind: &'static str,
    process: PresentJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zombie: Option<ZombieJson>,
    lineage: Vec<AncestorJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<AncestorJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphan: Option<OrphanJson<'a>>,
    /// The nearest orphan above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    below: Option<Who>,
    holds: HoldsJson<'a>,
    subtree: HoldsJson<'a>,
    waiters: Vec<WaiterJson>,
    kill: DoomJson<'a>,
    #[serde(flatten)]
    known: KnownJson,
}

#[derive(Serialize, JsonSchema)]
struct PresentJson<'a> {
    #[serde(flatten)]
    entry: EntryJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_channel: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
struct AncestorJson {
    #[serde(flatten)]
    who: Who,
    alive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    died: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
}

impl AncestorJson {
    fn new(ancestor: &Ancestor, style: Style) -> Self {
        let died = ancestor.died.as_ref();
        Self {
            who: ancestor.who.clone(),
            alive: died.is_none(),
            died: died.map(|died| style.clock.rfc3339(died.at_ns)),
            exit: died.map(|died| (&died.death).into()),
        }
    }
}

/// What some processes hold.
#[derive(Serialize, JsonSchema)]
struct HoldsJson<'a> {
    processes: usize,
    resident_bytes: u64,
    cpu_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<HoldingJson<'a>>,
    ports: Vec<PortJson>,
    locks: Vec<LockJson>,
}

#[derive(Serialize, JsonSchema)]
struct PortJson {
    protocol: &'static str,
    port: u16,
}

#[derive(Serialize, JsonSchema)]
struct LockJson {
    lock: String,
    access: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

impl<'a> HoldsJson<'a> {
    fn new(sum: &'a Subtree, holds: &Holds) -> Self {
        let ports = holds.sockets.iter().map(|socket| PortJson {
            protocol: socket.protocol,
            port: socket.port,
        });
        let locks = holds.locks.iter().map(|lock| LockJson {
            lock: lock.kind.clone(),
            access: lock.access.clone(),
            path: lock.path.as_ref().map(|path| path.display().to_string()),
        });
        Self {
            processes: sum.processes,
            resident_bytes: sum.resident_bytes,
            cpu_ms: sum.cpu_ms,
            gpu: HoldingJson::of(&sum.gpu),
            ports: ports.collect(),
            locks: locks.collect(),
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct WaiterJson {
    #[serde(flatten)]
    who: Who,
    how: &'static str,
    waits_now: bool,
}

impl From<&Waiter> for WaiterJson {
    fn from(waiter: &Waiter) -> Self {
        Self {
            who: waiter.who.clone(),
            how: waiter.how,
            waits_now: waiter.waits_now,
        }
    }
}

/// What `kill` would do.
#[derive(Serialize, JsonSchema)]
struct DoomJson<'a> {
    would_die: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
}

/// Returns the explanation as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(report: &Report<'_>, style: Style) -> Result<String, serde_json::Error> {
    let it = report.explanation;
    let mut member = MemberJson::from(&it.process);
    let mut end_ns = style.now_ns;
    if let Some(died) = &it.died {
        end_ns = died.at_ns;
        member.set_death(style.clock.rfc3339(end_ns), (&died.death).into());
    }
    let is_reparented = |parent: u32| {
        let creator = it.process.creator;
        creator.is_some_and(|creator| creator.pid != parent)
    };
    let zombie = it.zombie.as_ref();
    let json = ExplainJson {
        schema: SCHEMA,
        kind: "explain",
        process: PresentJson {
            entry: EntryJson {
                member,
                alive: it.died.is_none() && it.zombie.is_none(),
                age_ms: end_ns.saturating_sub(it.process.id.start_ns) / 1_000_000,
                live: it
                    .live
                    .as_ref()
                    .map(|live| live_json(live, is_reparented(live.parent), report.forest)),
            },
            wait_channel: it.wait_channel.as_deref(),
        },
        zombie: zombie
            .map(|zombie| ZombieJson::new(zombie, &Lineage::new(report.forest), style.moment())),
        lineage: it
            .lineage
            .iter()
            .map(|ancestor| AncestorJson::new(ancestor, style))
            .collect(),
        root: it.root.as_ref().map(|root| AncestorJson::new(root, style)),
        orphan: it
            .orphan
            .as_ref()
            .map(|orphan| OrphanJson::new(orphan, style)),
        below: it.below.clone(),
        holds: HoldsJson::new(&it.own, &it.own_holds),
        subtree: HoldsJson::new(&it.subtree, &it.subtree_holds),
        waiters: it.waiters.iter().map(Into::into).collect(),
        kill: DoomJson {
            would_die: it.would_die,
            refused: it.refusal.as_deref(),
        },
        known: KnownJson::new(report.snapshot, report.losses, style.clock),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

//! Zombies, as text and as JSON: how they died, since when, and who does not reap them.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::json::Id;
use super::out::printable;
use super::text::{self, duration_ms};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::clock::WallClock;
use crate::proc::{self, Zombie};
use crate::process::json::ExitJson;
use crate::process::{Death, Name, Process, Who};

/// The time of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Turns times since boot into dates.
    pub(super) clock: WallClock,
    /// Now, ns since boot.
    pub(super) now_ns: u64,
}

/// A zombie, with what the lineage knows of it and of its parent.
#[derive(Serialize, JsonSchema)]
pub(super) struct ZombieJson {
    #[serde(flatten)]
    id: Id,
    #[serde(flatten)]
    name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    /// Who does not reap it.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Who>,
    /// The state of that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_state: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    died: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
}

/// What is known of a zombie.
struct Facts {
    death: Option<Death>,
    dead_ns: Option<u64>,
    parent: Option<Who>,
    parent_state: Option<char>,
}

/// The lineage, with its dead by their pids.
pub(super) struct Lineage<'a> {
    forest: &'a Forest,
    dead: HashMap<u32, Vec<ProcessId>>,
}

impl<'a> Lineage<'a> {
    /// Turns the lineage around.
    pub(super) fn new(forest: &'a Forest) -> Self {
        let mut dead: HashMap<_, Vec<_>> = HashMap::new();
        for (id, _) in forest.records().filter(|(id, _)| forest.is_dead(id)) {
            dead.entry(id.pid).or_default().push(*id);
        }
        Self { forest, dead }
    }
}

/// Looks into the lineage, which has the exact time and the sender where something that the zombie
/// created is alive.
fn facts(zombie: &Zombie, lineage: &Lineage<'_>, now_ns: u64) -> Facts {
    let forest = lineage.forest;
    let dead = lineage.dead.get(&zombie.id.pid).into_iter().flatten();
    let ghost = dead.copied().find(|id| proc::owns_pid(*id));
    let ghost = ghost.and_then(|id| forest.record(&id));
    let parent = forest.live(zombie.parent);
    Facts {
        death: ghost.map(Death::of_record).or_else(|| {
            let status = zombie.status.map(u32::cast_signed);
            status.map(Death::from_wait_status)
        }),
        dead_ns: ghost
            .map(|ghost| now_ns.saturating_sub(ghost.exit_ns))
            .or(zombie.dead_ns),
        parent: parent.and_then(|id| Some(Process::of_record(id, forest.record(&id)?).who())),
        parent_state: proc::stat(zombie.parent).map(|stat| stat.state),
    }
}

impl ZombieJson {
    pub(super) fn new(zombie: &Zombie, lineage: &Lineage<'_>, at: Moment) -> Self {
        let facts = facts(zombie, lineage, at.now_ns);
        let died = facts.dead_ns.map(|ns| at.now_ns.saturating_sub(ns));
        Self {
            id: zombie.id.into(),
            name: zombie.name.clone(),
            uid: zombie.uid,
            parent: facts.parent,
            parent_state: facts.parent_state,
            died: died.map(|at_ns| at.clock.rfc3339(at_ns)),
            dead_ms: facts.dead_ns.map(|ns| ns / 1_000_000),
            exit: facts.death.map(Into::into),
        }
    }
}

/// Returns a line about a zombie.
pub(super) fn line(zombie: &Zombie, lineage: &Lineage<'_>, at: Moment) -> String {
    let facts = facts(zombie, lineage, at.now_ns);
    let name = zombie.name.as_deref().map(printable).unwrap_or_default();
    let how = facts.death.as_ref().map(text::how);
    let how = how.unwrap_or_else(|| "how it died is not known".to_owned());
    let since = facts.dead_ns.map(|ns| duration_ms(ns / 1_000_000));
    let since = since.map_or_else(String::new, |since| format!(", {since} ago"));
    let parent = facts.parent.as_ref().map(text::who);
    let parent = parent.unwrap_or_else(|| zombie.parent.to_string());
    let state = facts.parent_state;
    let state = state.map_or_else(String::new, |state| format!(" (state {state})"));
    format!(
        "zombie     {} {name}  {how}{since}; not reaped by {parent}{state}\n",
        zombie.id.pid
    )
}

//! `lifemon track on|off|status`: the tracker that stays in the kernel with no process running.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Code, Output, boot, parse_capacity};
use crate::forest::Forest;
use crate::kernel::clock::WallClock;
use crate::kernel::pins::{self, Found, Look};
use crate::kernel::switch::Switched;
use crate::kernel::tracker::HookCost;
use crate::kernel::{Distrust, LoadOptions, Tracker, preflight};
use crate::loss::Loss;
use crate::report::json::SCHEMA;
use crate::report::out;
use crate::words::count;

/// Time for which `status` lets the kernel measure the hooks.
const MEASURE: Duration = Duration::from_millis(500);

/// Arguments of `track`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon track on             from now on the lineage of this host is kept
  sudo lifemon track on --at-boot   and from each start of the machine on
  sudo lifemon track status         since when, how full, what was lost, what it costs
  sudo lifemon track off            removes every trace")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep the lineage of this host from now on, with no process running
    #[command(after_help = "Example:\n  sudo lifemon track on --max-processes 200000")]
    On {
        /// Processes and ghosts to have room for; kernel memory is taken at once, 300 bytes each
        #[arg(long, value_name = "N", default_value = "65536", value_parser = parse_capacity)]
        max_processes: u32,
        /// And from each start of the machine on, by a unit of systemd, until `track off`
        #[arg(long)]
        at_boot: bool,
        /// Work as on kernels before 6.16 (for tests)
        #[arg(long, hide = true)]
        without_group_dead: bool,
        /// Work as on kernels from 7.0 on (for tests)
        #[arg(long, hide = true)]
        preemptible: bool,
        /// Major number of devices that count as GPUs for the flight recorder (for tests)
        #[arg(long, hide = true)]
        log_device_major: Option<u32>,
    },
    /// Remove the tracker: no program, map or pin remains
    #[command(after_help = "Example:\n  sudo lifemon track off")]
    Off,
    /// Since when, records, ghosts, map use, losses, cost; exit code 1 when it is off
    #[command(after_help = "Example:\n  sudo lifemon track status -o json | jq .cost")]
    Status,
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    match args.action {
        Action::On {
            max_processes,
            at_boot,
            without_group_dead,
            preemptible,
            log_device_major,
        } => {
            let options = LoadOptions {
                max_processes,
                debug: verbose >= 2,
                without_group_dead,
                preemptible,
                gpu_major: log_device_major,
            };
            on(&options, at_boot, output)
        }
        Action::Off => off(output),
        Action::Status => status(output),
    }
}

/// The JSON that `track on` and `track off` print.
#[derive(Serialize, JsonSchema)]
pub(crate) struct SwitchedJson {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "track"))]
    kind: &'static str,
    tracker: &'static str,
    changed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    distrusted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_boot: Option<PathBuf>,
}

fn since_of(tracker: Option<&Tracker>) -> Option<String> {
    tracker.map(|tracker| WallClock::now().rfc3339(tracker.since_ns()))
}

fn on(options: &LoadOptions, at_boot: bool, output: Output) -> anyhow::Result<Code> {
    let binary = at_boot.then(boot::check).transpose()?;
    let switched = Tracker::switch_on(options)?;
    let unit = binary.map(|binary| boot::write(&binary, options.max_processes));
    let unit = unit.transpose()?;
    let since = since_of(Tracker::open()?.as_ref());
    if output == Output::Json {
        print_switched("on", switched, since, unit)?;
        return Ok(Code::Done);
    }
    let mut text = String::new();
    if let Some(missing) = &switched.repaired {
        text.push_str(&format!(
            "the tracker found here was torn ({missing} was missing): replaced\n"
        ));
    }
    for name in &switched.replaced {
        text.push_str(&format!(
            "removed what another version or a killed loader left: {name}\n"
        ));
    }
    if let Some(since) = lost_since(&switched) {
        text.push_str(&format!(
            "the history since {since} is lost with it: who is alive is learnt again, and what \
             watched it was told that it ended\n"
        ));
    }
    if let Some(distrust) = &switched.distrusted {
        text.push_str(&passed_over(distrust));
    }
    if let Some(place) = switched.mounted {
        text.push_str(&format!("mounted a BPF file system on {place}\n"));
    }
    let since = since.unwrap_or_default();
    text.push_str(&if switched.unchanged {
        format!("tracking was on already, since {since}\n")
    } else {
        format!("tracking is on since {since}; no process is needed to keep it\n")
    });
    if let Some(unit) = unit {
        let unit = unit.display();
        text.push_str(&format!(
            "each start of the machine switches it on ({unit})\n"
        ));
    }
    out::print(&text)?;
    Ok(Code::Done)
}

/// Returns since when the tracker that was replaced had kept the lineage.
fn lost_since(switched: &Switched) -> Option<String> {
    let since_ns = switched.lost_since_ns?;
    Some(WallClock::now().rfc3339(since_ns))
}

/// Says why the BPF file system of the host is not used.
fn passed_over(distrust: &Distrust) -> String {
    format!("{distrust}: the tracker is not kept there\n")
}

fn print_switched(
    tracker: &'static str,
    switched: Switched,
    since: Option<String>,
    unit: Option<PathBuf>,
) -> anyhow::Result<()> {
    let lost_since = lost_since(&switched);
    let json = SwitchedJson {
        schema: SCHEMA,
        kind: "track",
        tracker,
        changed: !switched.unchanged,
        removed: switched.replaced,
        repaired: switched.repaired,
        mounted: switched.mounted,
        distrusted: switched.distrusted.map(|distrust| distrust.to_string()),
        since,
        lost_since,
        at_boot: unit,
    };
    Ok(out::print(&format!("{}\n", serde_json::to_string(&json)?))?)
}

fn off(output: Output) -> anyhow::Result<Code> {
    let switched = Tracker::switch_off()?;
    let unit = boot::remove()?;
    if output == Output::Json {
        print_switched("off", switched, None, unit)?;
        return Ok(Code::Done);
    }
    let mut text = if switched.unchanged {
        "tracking was off already\n".to_owned()
    } else {
        "tracking is off; nothing remains in the kernel\n".to_owned()
    };
    if let Some(unit) = unit {
        let unit = unit.display();
        text.push_str(&format!(
            "removed {unit}: no start of the machine switches it on\n"
        ));
    }
    if let Some(distrust) = &switched.distrusted {
        text.push_str(&format!("{distrust}: left as it is\n"));
    }
    out::print(&text)?;
    Ok(Code::Done)
}

/// The state of the tracker.
#[derive(Serialize, JsonSchema)]
pub(crate) struct StatusJson {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "track_status"))]
    kind: &'static str,
    tracker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    distrusted: Option<String>,
    #[serde(flatten)]
    state: Option<StateJson>,
}

#[derive(Serialize, JsonSchema)]
struct StateJson {
    since: String,
    processes: usize,
    ghosts: usize,
    orphans: usize,
    capacity: u32,
    watched_trees: usize,
    memberships: usize,
    forks: u64,
    exits: u64,
    lost: LostJson,
    log: RecorderJson,
    complete: bool,
    cost: Vec<HookCost>,
}

#[derive(Serialize, JsonSchema)]
struct LostJson {
    records: u64,
    missed_runs: u64,
}

/// The flight recorder.
#[derive(Serialize, JsonSchema)]
struct RecorderJson {
    recorded: u64,
    overwritten: u64,
    capacity: u32,
}

fn status(output: Output) -> anyhow::Result<Code> {
    preflight::check_privileges()?;
    let Look { found, distrusted } = pins::look();
    let distrusted = distrusted.as_ref();
    let mut directory = None;
    let problem = match found {
        Found::Complete { directory: found } => {
            directory = Some(found);
            None
        }
        Found::Nothing => None,
        Found::Torn { missing } => Some(format!(
            "torn: {missing} is missing; `lifemon track on` repairs it"
        )),
        Found::Other { names } => Some(format!(
            "only other versions are there ({}); `lifemon track on` replaces them",
            names.join(", ")
        )),
        Found::Foreign(distrust) => Some(format!(
            "{distrust}; look what it is, and remove it before `lifemon track on`"
        )),
    };
    let state = Tracker::open()?.map(read_state).transpose()?;
    let history = pins::missing_history();
    let is_hidden = state.is_none() && history != Loss::NoHistory;
    let problem = if is_hidden {
        Some(history.advice().to_owned())
    } else {
        problem
    };
    let code = if state.is_some() {
        Code::Done
    } else {
        Code::No
    };
    if output == Output::Json {
        let tracker = match (&state, is_hidden) {
            (Some(_), _) => "on",
            (None, true) => history.word(),
            (None, false) => "off",
        };
        let json = StatusJson {
            schema: SCHEMA,
            kind: "track_status",
            tracker,
            directory,
            problem,
            distrusted: distrusted.map(ToString::to_string),
            state,
        };
        out::print(&format!("{}\n", serde_json::to_string(&json)?))?;
        return Ok(code);
    }
    let mut text = match (&state, problem) {
        (Some(state), _) => describe(state),
        (None, Some(problem)) if is_hidden => format!("{problem}\n"),
        (None, Some(problem)) => format!("tracking is off: {problem}\n"),
        (None, None) => "tracking is off; `lifemon track on` switches it on\n".to_owned(),
    };
    text.extend(distrusted.map(passed_over));
    out::print(&text)?;
    Ok(code)
}

fn read_state(mut tracker: Tracker) -> anyhow::Result<StateJson> {
    tracker.reclaim_locked()?;
    tracker.heal()?;
    tracker.sweep()?;
    let cost = tracker.measure(MEASURE)?;
    let snapshot = tracker.snapshot()?;
    let host = tracker.host_counters();
    // Exits that were missed have been recovered.
    let missed_runs = tracker.missed_forks();
    let forest = Forest::new(snapshot.records);
    let (recorded, overwritten) = tracker.log_counters();
    Ok(StateJson {
        since: WallClock::now().rfc3339(tracker.since_ns()),
        processes: forest.len() - forest.ghosts(),
        ghosts: forest.ghosts(),
        orphans: forest.orphans().len(),
        capacity: tracker.capacity()?,
        watched_trees: tracker.watched(),
        memberships: tracker.membership_count()?,
        forks: host.forks,
        exits: host.exits,
        lost: LostJson {
            records: host.lost_records,
            missed_runs,
        },
        log: RecorderJson {
            recorded,
            overwritten,
            capacity: lifemon_ebpf::limits::LOG_ENTRIES,
        },
        complete: host.lost_records == 0 && missed_runs == 0,
        cost,
    })
}

fn describe(state: &StateJson) -> String {
    let used = state.processes + state.ghosts;
    let mut text = format!(
        "tracking is on since {}\n\
         records      {}, {}, {}; {used} of {} in use\n\
         watched      {}, {}\n\
         seen         {}, {}\n\
         log          {}, {} overwritten\n\
         lost         {} (map full), {}{}\n",
        state.since,
        count(state.processes, "process"),
        count(state.ghosts, "ghost"),
        count(state.orphans, "orphan"),
        state.capacity,
        count(state.watched_trees, "tree"),
        count(state.memberships, "membership"),
        count(state.forks, "fork"),
        count(state.exits, "exit"),
        count(state.log.recorded, "death"),
        state.log.overwritten,
        count(state.lost.records, "record"),
        count(state.lost.missed_runs, "missed hook run"),
        if state.complete { "" } else { ": not complete" },
    );
    for cost in &state.cost {
        let time = cost.ns_per_run.map_or_else(
            || "did not run while it was measured".to_owned(),
            |ns| {
                format!(
                    "{ns} ns a run, {} in {} ms",
                    count(cost.runs, "run"),
                    MEASURE.as_millis()
                )
            },
        );
        text.push_str(&format!("cost         {:<13} {time}\n", cost.hook));
    }
    text
}

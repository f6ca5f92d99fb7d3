//! `lifemon orphans`: lists orphans, and kills them on request.

use std::time::Duration;

use regex::bytes::RegexSet;

use super::devices::DeviceArgs;
use super::target::Target;
use super::tree::style;
use super::{Code, Output, parse_duration};
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{Answer, Server};
use crate::gpu::{self, Survey};
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{LoadOptions, Tracker, clock};
use crate::kill::{Guard, KillOptions, KillReport, kill_trees};
use crate::orphan::{self, Orphan, Wanted};
use crate::proc;
use crate::report::{self, out};

/// Arguments of `orphans`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the command line"
)]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon orphans                          what was left behind on this host
  sudo lifemon orphans --gpu --match EngineCore  those that hold a GPU and whose command line matches
  sudo lifemon orphans --tree 4200 --kill       what the tree of 4200 left behind, and its end
  sudo lifemon orphans --check && echo clean    for scripts

An orphan is a living process whose creator is dead: stranded when the root of its tree is dead too,
reparented while that lives. --all adds daemons, which look deliberate, and what is older than tracking
(inferred); --kill spares both unless --force is given.
Exit codes: 0 done, 1 with --check: there are some; with --kill: something is left.")]
pub struct Args {
    /// Only those that hold a GPU
    #[arg(long)]
    gpu: bool,
    /// Only those whose whole command line matches; repeatable: any of them
    #[arg(long = "match", value_name = "REGEX")]
    patterns: Vec<String>,
    /// Only those of the tree of this process, dead or alive
    #[arg(long, value_name = "PID")]
    tree: Option<Target>,
    /// Also daemons, and what is older than tracking
    #[arg(long)]
    all: bool,
    /// Exit with 1 if there are any
    #[arg(long)]
    check: bool,
    /// Kill what is shown, with everything below it
    #[arg(long, conflicts_with = "check")]
    kill: bool,
    /// With --kill: daemons and inferred ones too
    #[arg(long, requires = "kill")]
    force: bool,
    /// With --kill: how long to go on killing
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Whole command lines
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    gpus: DeviceArgs,
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    if args.kill {
        crate::sys::priority::go_first();
    } else {
        crate::sys::limits::raise_descriptor_limit();
    }
    let patterns =
        RegexSet::new(&args.patterns).map_err(|error| super::Usage(regex_error(&error)))?;
    let files = args.gpus.files()?;
    let load = LoadOptions {
        debug: verbose >= 2,
        ..LoadOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tracker = Tracker::open_or_load(&load)?;
    let (snapshot, survey, mut orphans) = runtime.block_on(look(&tracker, args, &files))?;
    orphans.retain(|orphan| {
        (args.all || orphan.class.is_certain() || orphan.was_seen_left())
            && (!args.gpu || !orphan.gpu.is_empty())
            && (args.patterns.is_empty() || patterns.is_match(&orphan.command.joined()))
    });
    let losses = [snapshot.losses(), survey.losses()].concat();
    let style = style(args.full);
    let options = KillOptions {
        timeout: args.timeout,
        release: super::devices::release(&files),
        ..KillOptions::default()
    };
    let killed = args
        .kill
        .then(|| runtime.block_on(kill(tracker, &orphans, args.force, &options)))
        .transpose()?;
    let report = killed.as_ref().and_then(|killed| killed.report.as_ref());
    let text = match output {
        Output::Text => {
            let mut text = report::orphans::text(&orphans, &losses, style);
            text.extend(report.map(report::kill::done));
            text
        }
        Output::Json => report::orphans::json(&orphans, report, &snapshot, &losses, style)?,
    };
    out::print(&text)?;
    let is_no = match &killed {
        Some(killed) => !killed.is_complete(),
        None => args.check && !orphans.is_empty(),
    };
    Ok(if is_no { Code::No } else { Code::Done })
}

/// Returns what is wrong with a pattern: the first line says where, the last one what.
fn regex_error(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!("--match: {}", last.trim_start_matches("error: "))
}

/// Takes the snapshot, and asks the driver of GPUs only when some orphan has a device open, or when
/// GPUs are asked for: a driver can take seconds.
async fn look(
    tracker: &Tracker,
    args: &Args,
    files: &DeviceFiles,
) -> anyhow::Result<(Snapshot, Survey, Vec<Orphan>)> {
    let mut snapshot = tracker.snapshot()?;
    let wanted = Wanted {
        tree: args.tree.map(|target| target.find(&snapshot)).transpose()?,
        inferred: args.all,
    };
    let scan = |snapshot: &Snapshot| {
        let forest = Forest::new(snapshot.records.iter().copied());
        let candidates: Vec<ProcessId> = if args.all {
            forest.all_living().collect()
        } else {
            forest.orphans()
        };
        (holders::scan(candidates, files), forest)
    };
    let (mut found, mut forest) = scan(&snapshot);
    let mut answer = Answer::NotAsked;
    let asked_ns = clock::boot_ns();
    if args.gpu || !found.holders.is_empty() {
        answer = Server::of_this_program().ask().await;
        snapshot = tracker.snapshot()?;
        (found, forest) = scan(&snapshot);
    }
    let survey = gpu::survey(&forest, answer, asked_ns, found);
    let orphans = orphan::find(&forest, &wanted, &survey.holders);
    Ok((snapshot, survey, orphans))
}

/// The outcome of killing orphans.
pub(super) struct Killed {
    /// The outcomes of the kills; empty if nothing was to be killed.
    pub(super) report: Option<KillReport>,
    /// Orphans that were spared.
    spared: usize,
}

impl Killed {
    /// Returns whether none of the orphans is left.
    pub(super) fn is_complete(&self) -> bool {
        self.spared == 0 && self.report.as_ref().is_none_or(KillReport::is_done)
    }
}

/// Kills the trees of these orphans, all as one; daemons and inferred ones only by force, and never
/// what this command itself was started from.
pub(super) async fn kill(
    tracker: Tracker,
    orphans: &[Orphan],
    force: bool,
    options: &KillOptions,
) -> anyhow::Result<Killed> {
    let guard = Guard::new(&tracker.snapshot()?);
    let mut doomed = Vec::new();
    let mut spared = 0;
    for orphan in orphans {
        let id = orphan.process.id;
        if !force && !orphan.class.is_certain() {
            log::warn!(
                "{} is {}: spared without --force",
                id.pid,
                orphan.class.word()
            );
            spared += 1;
        } else if let Err(refusal) = guard.check(id, false) {
            log::warn!("{refusal}");
            spared += 1;
        } else if proc::is_live(id) {
            doomed.push(id);
        }
    }
    let report = match doomed.split_first() {
        Some((root, others)) => Some(kill_trees(tracker, *root, others, options).await?),
        None => None,
    };
    Ok(Killed { report, spared })
}

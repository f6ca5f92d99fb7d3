//! `lifemon log`: the flight recorder in the host's tracker. Who died, and of what, although nobody
//! watched.

use std::collections::HashSet;
use std::time::Duration;

use lifemon_ebpf::LogEntry;

use super::select::parse_user;
use super::target::Target;
use super::tree::style;
use super::{Code, NoSuchProcess, Output, give_up_rights, parse_duration};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Tracker, clock, pins, preflight};
use crate::loss::Loss;
use crate::report::log::Report;
use crate::report::{self, out};

/// Arguments of `log`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon log --since 10m              who died in the last ten minutes, and who killed it
  sudo lifemon log --tree 4200              of the tree of 4200, dead or alive
  sudo lifemon log -o json | jq '.entries[] | select(.exit.cause == \"oom\")'

Recorded are deaths by a signal or of memory; deaths with another code than 0 that left something
alive behind or had a GPU open; and every other death that left something alive. The recorder is in
the kernel, with `lifemon track on`, and needs no process. It keeps 8192 deaths; each user has a share,
so that one cannot wash out another's.
Exit codes: 0 done, 3 the tracker is off, 4 no such process.")]
pub struct Args {
    /// Only deaths since then: 10m, 1.5s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only processes of this user, by name or number
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    user: Option<u32>,
    /// Only the tree of this process, dead or alive
    #[arg(long, value_name = "PID")]
    tree: Option<Target>,
}

/// The tracker is off: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoRecorder(String);

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<Code> {
    let now_ns = clock::boot_ns();
    preflight::check()?;
    let tracker = Tracker::open()?.ok_or_else(|| {
        NoRecorder(match pins::missing_history() {
            Loss::NoHistory => "the flight recorder is in the host's tracker, which is off: \
                                `lifemon track on` switches it on, and it records from then on"
                .to_owned(),
            hidden => hidden.advice().to_owned(),
        })
    })?;
    give_up_rights(false, false);
    let log = tracker.log()?;
    let snapshot = tracker.snapshot()?;
    let forest = Forest::new(snapshot.records.iter().copied());
    let since_ns = args.since.map(|since| {
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        now_ns.saturating_sub(since)
    });
    let tree = args
        .tree
        .map(|target| tree(target, &log, &snapshot, &forest))
        .transpose()?;
    let mut entries: Vec<LogEntry> = log.entries.clone();
    entries.retain(|entry| {
        since_ns.is_none_or(|since| entry.time_ns >= since)
            && args.user.is_none_or(|user| entry.uid == user)
            && tree
                .as_ref()
                .is_none_or(|tree| tree.contains(&entry.process))
    });
    let report = Report {
        entries: &entries,
        log: &log,
        forest: &forest,
        snapshot: &snapshot,
        losses: &losses(args, since_ns, &log, &snapshot),
    };
    let style = style(false);
    let text = if output.is_text() {
        report::log::text(&report, style)
    } else {
        report::log::json(&report, style)?
    };
    out::print(&text)?;
    Ok(Code::Done)
}

/// Returns what of the time that was asked about is not known.
fn losses(args: &Args, since_ns: Option<u64>, log: &Log, snapshot: &Snapshot) -> Vec<Loss> {
    let Some(since_ns) = since_ns else {
        return Vec::new();
    };
    let mut losses = Vec::new();
    if since_ns < snapshot.since_ns {
        losses.push(Loss::NoHistory);
    }
    if since_ns < log.whole_since_ns(args.user) {
        losses.push(Loss::Overwritten);
    }
    losses
}

/// Returns everybody who is known to be of the tree of a process: by the lineage, and by the deaths
/// that were recorded. The process itself may be known from its death alone.
fn tree(
    target: Target,
    log: &Log,
    snapshot: &Snapshot,
    forest: &Forest,
) -> Result<HashSet<ProcessId>, NoSuchProcess> {
    let recorded = log.entries.iter().rev().map(|entry| entry.process);
    let root = match target.find_shown(snapshot) {
        Ok(root) => root,
        Err(error) => recorded
            .into_iter()
            .find(|id| target.names(*id))
            .ok_or(error)?,
    };
    let mut tree: HashSet<ProcessId> = forest.tree(root).into_iter().collect();
    tree.insert(root);
    // Who died later may be the creator of who died before.
    loop {
        let known = tree.len();
        for entry in log.entries.iter().rev() {
            if tree.contains(&entry.creator) {
                tree.insert(entry.process);
            }
        }
        if tree.len() == known {
            return Ok(tree);
        }
    }
}

//! `lifemon wait`: waits for the end of processes, each stage of it by its name.

#[cfg(feature = "agent")]
pub(super) mod asked;

use std::time::Duration;

use super::devices::DeviceArgs;
use super::target::Target;
use super::{Code, Interrupts, Output, give_up_rights, load_options, parse_duration};
use crate::kernel::Tracker;
use crate::report::{out, wait as report};
use crate::sys::runtime::current_thread;
use crate::wait::{Until, Waiting};

/// The exit code after Ctrl-C: that of a command that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon wait 4200                                until nothing of the tree of 4200 is alive
  sudo lifemon wait 4200 4300 --until any-exit          until the first of their processes dies
  sudo lifemon wait 4200 --until released --timeout 1m  before the next job gets the GPUs

`released` covers GPU memory alone: host memory that a driver had pinned can come back later, and
nothing shows whose it was.
Exit codes: 0 the condition holds, 1 the time is over (or a driver did not answer), 4 no such process.")]
pub struct Args {
    /// Processes: PID, or `PID@START_NS` for exactly that one
    #[arg(required = true)]
    targets: Vec<Target>,
    /// What to wait for
    #[arg(long, value_enum, value_name = "CONDITION", default_value = "extinct")]
    until: Until,
    /// Longest time to wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    gpus: DeviceArgs,
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    let runtime = current_thread()?;
    runtime.block_on(wait(args, output, verbose))
}

async fn wait(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    let mut interrupts = Interrupts::listen()?;
    let files = args.gpus.files()?;
    let tracker = Tracker::open_or_load(&load_options(verbose))?;
    give_up_rights(false, false);
    let snapshot = tracker.snapshot()?;
    let found = args.targets.iter().map(|target| target.find(&snapshot));
    let ids = found.collect::<Result<Vec<_>, _>>()?;
    let mut waiting = Waiting::begin(tracker, &snapshot, ids, args.until, files.exist())?;
    let holds = tokio::select! {
        holds = waiting.holds(args.timeout) => holds?,
        () = interrupts.next() => return Ok(Code::Command(INTERRUPTED)),
    };
    let waited = waiting.end(holds);
    let text = if output.is_text() {
        report::text(&waited, out::wants_colour())
    } else {
        report::json(&waited)?
    };
    out::print(&text)?;
    Ok(if holds { Code::Done } else { Code::No })
}

//! `lifemon explain`: everything that is known of one process, on one screen.

use super::devices::DeviceArgs;
use super::target::Target;
use super::tree::style;
use super::{Code, NoSuchProcess, Output, give_up_rights, load_options};
use crate::explain::{self, Asker};
use crate::forest::Forest;
use crate::kernel::Tracker;
use crate::orphan::Known;
use crate::report::explain::Report;
use crate::report::{self, out};
use crate::sys::runtime::current_thread;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon explain 4200
  sudo lifemon explain 4200 -o json | jq .orphan.verdict

A dead process is explained while something that it created is alive, or while nobody has reaped it.
`lifemon log` has the deaths before.
Exit codes: 0 done, 4 no such process, or no longer that one.")]
pub struct Args {
    /// The process: PID, or `PID@START_NS` for exactly that one
    target: Target,
    /// Whole command lines
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    gpus: DeviceArgs,
}

#[cfg(feature = "agent")]
impl Args {
    /// Returns the request to the agent that stands for this command; `None` where it has options
    /// that the agent does not know.
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        if self.gpus.are_chosen() {
            return None;
        }
        let full = if self.full { "?full=true" } else { "" };
        let path = format!("/v1/explain/{}{full}", self.target.for_agent()?);
        Some(vec![super::asked::Request::get(path)])
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    crate::sys::limits::raise_descriptor_limit();
    let files = args.gpus.files()?;
    let runtime = current_thread()?;
    let mut tracker = Tracker::open_or_load(&load_options(verbose))?;
    give_up_rights(false, false);
    let snapshot = tracker.snapshot()?;
    let zombie = args.target.zombie(&snapshot);
    let found = match (args.target.find_shown(&snapshot), &zombie) {
        (Ok(id), _) => Some(id),
        (Err(_), Some(_)) => None,
        (Err(error), None) if tracker.is_pinned() => return Err(error.into()),
        (Err(error), None) => {
            let remedy = "`lifemon track on` keeps who has died";
            return Err(NoSuchProcess(format!("{error}; {remedy}")).into());
        }
    };
    let forest = Forest::new(snapshot.records.iter().copied());
    let survey = runtime.block_on(explain::survey(&forest, found, &files));
    let known = Known {
        forest: &forest,
        subreapers: &tracker.subreapers()?,
        holders: &survey.holders,
    };
    let explanation = match (found, zombie) {
        (Some(id), _) => explain::of_process(&known, &snapshot, id, Asker::ALL),
        (None, zombie) => {
            zombie.map(|zombie| explain::of_zombie(&known, &snapshot, zombie, Asker::ALL))
        }
    };
    let explanation =
        explanation.ok_or_else(|| NoSuchProcess("it has died at this moment".to_owned()))?;
    let report = Report {
        explanation: &explanation,
        forest: &forest,
        snapshot: &snapshot,
        losses: &[snapshot.losses(), survey.losses()].concat(),
    };
    let style = style(args.full);
    let text = if output.is_text() {
        report::explain::text(&report, style)
    } else {
        report::explain::json(&report, style)?
    };
    out::print(&text)?;
    Ok(Code::Done)
}

//! `lifemon tree`: shows the lineage as it is now, ghosts included.

use super::select::Selectors;
use super::target::Target;
use super::{Code, Output, give_up_rights, load_options};
use crate::kernel::Tracker;
use crate::kernel::clock::{self, WallClock};
use crate::report::tree::Style;
use crate::report::{self, out};
use crate::tree;

/// Arguments of `tree`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon tree            all processes of this host
  sudo lifemon tree 4200       the tree of 4200, dead or alive
  sudo lifemon tree --user bob --older-than 1h
  sudo lifemon tree 4200 -o json | jq '.processes[] | select(.alive) | .pid'

\u{2020} marks the dead that have living descendants, ~ what is older than tracking and so inferred from
parents. Selectors leave out whoever they do not mean; the dead above those who are shown stay.")]
pub struct Args {
    /// Root of the tree: PID, or `PID@START_NS` for exactly that process
    target: Option<Target>,
    /// Every process, equal ones too, and whole command lines
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    selectors: Selectors,
}

#[cfg(feature = "agent")]
impl Args {
    /// Returns the request to the agent that stands for this command; `None` where it has options
    /// that the agent does not know.
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        if self.selectors.are_given() {
            return None;
        }
        let path = match self.target {
            Some(target) => format!("/v1/tree/{}", target.for_agent()?),
            None => "/v1/tree".to_owned(),
        };
        let full = if self.full { "?full=true" } else { "" };
        Some(vec![super::asked::Request::get(path + full)])
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    let selection = args.selectors.prepare()?;
    let tracker = Tracker::open_or_load(&load_options(verbose))?;
    give_up_rights(false, false);
    let snapshot = tracker.snapshot()?;
    let root = args
        .target
        .map(|target| target.find_shown(&snapshot))
        .transpose()?;
    let entries = selection.entries(&snapshot, tree::gather(&snapshot, root));
    let zombies = tree::zombies_of(&entries, root.is_none() && !args.selectors.are_given());
    let style = style(args.full || output == Output::Wide);
    let text = match output {
        Output::Text | Output::Wide => report::tree::text(&entries, &zombies, &snapshot, style),
        Output::Name => {
            let living = entries.iter().filter(|entry| entry.died.is_none());
            report::tree::names(living.map(|entry| entry.process.id))
        }
        Output::Json => report::tree::json(&entries, &zombies, &snapshot, root, style)?,
    };
    out::print(&text)?;
    Ok(Code::Done)
}

/// Returns the style for standard output as it is now.
pub(super) fn style(full: bool) -> Style {
    Style {
        clock: WallClock::now(),
        now_ns: clock::boot_ns(),
        colour: out::wants_colour(),
        full,
        columns: out::columns().filter(|_| !full),
    }
}

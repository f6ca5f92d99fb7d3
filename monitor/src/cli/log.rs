//! `lifemon log`: the flight recorder in the host's tracker. Who died, and of what, although nobody
//! watched.

use std::time::Duration;

use super::select::parse_user;
use super::target::Target;
use super::tree::style;
use super::{Code, NoSuchProcess, Output, give_up_rights, parse_duration};
use crate::deaths::{self, Choice};
use crate::forest::Forest;
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

#[cfg(feature = "agent")]
impl Args {
    /// Returns the request to the agent that stands for this command; `None` where it has options
    /// that the agent does not know.
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        let tree = match self.tree {
            Some(target) => Some(target.for_agent()?),
            None => None,
        };
        let options = [
            (
                "since",
                self.since.map(|since| format!("{}ms", since.as_millis())),
            ),
            ("user", self.user.map(|user| user.to_string())),
            ("tree", tree),
        ];
        let given = options.into_iter();
        let given = given.filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        let query = given.collect::<Vec<_>>().join("&");
        Some(vec![super::asked::Request::get(format!("/v1/log?{query}"))])
    }
}

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
    let tree = args.tree.map(|target| {
        let shown = target.find_shown(&snapshot);
        let recorded = deaths::latest(&log, |entry| target.names(entry.process));
        let root = shown.or_else(|error| recorded.ok_or(error))?;
        Ok::<_, NoSuchProcess>(deaths::tree(root, &log, &forest))
    });
    let choice = Choice {
        since_ns: args.since.map(|since| clock::before(now_ns, since)),
        user: args.user,
        tree: tree.transpose()?,
    };
    let mut entries = log.entries.clone();
    entries.retain(|entry| choice.means(entry));
    let report = Report {
        entries: &entries,
        log: &log,
        forest: &forest,
        snapshot: &snapshot,
        losses: &choice.losses(args.user, &log, &snapshot),
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

//! `lifemon kill`: kills every process of a tree and nobody else, and proves that the tree is
//! extinct.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::devices::DeviceArgs;
use super::select::Selectors;
use super::sparing::{self, Spare};
use super::target::Target;
use super::{
    Code, Interrupts, NoSuchProcess, Output, Usage, give_up_rights, load_options, parse_duration,
};
use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Tracker, clock};
use crate::kill::marks::Marks;
use crate::kill::{Guard, KillOptions, KillReport, ReleaseOptions, Suspects, kill_tree};
use crate::proc;
use crate::process::Signal;
use crate::report::{self, out};
use crate::sys::runtime::current_thread;

/// Time after which progress is shown.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// Remedy for a dead root that has no record.
const WITHOUT_TRACKER: &str =
    "what the dead have left behind is known where `lifemon track on` was called before";

/// Refusal to kill whatever happens to be meant.
const UNNAMED: &str = "selectors go with --dry-run: it shows which processes they mean; kill those by PID@START_NS, or \
     use `lifemon orphans --kill`";

/// Warning after an interrupted kill.
const INTERRUPTED: &str =
    "interrupted: nothing stays condemned or attached; what is alive stays alive";

/// Arguments of `kill`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the command line"
)]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon kill 4200                            the whole tree of 4200, at once
  sudo lifemon kill 4200 --signal TERM --grace 10s  let it end by itself first
  sudo lifemon kill 4200 --dry-run                  what would die, and why it belongs to it
  sudo lifemon kill --dry-run --port 8000           whose trees hold that port
  sudo lifemon kill 4200 --spare tmux               all of it but tmux and what runs in it

A tree whose root has died is killed as well, while the tracker is on: name the root as it was.
Where the tracker is off, or the root is older than it, some may have left the tree unseen: who looks
like one of those is a suspect, and listed with the evidence.
Selectors are for --dry-run alone: what is killed is named. With a target they choose what is listed of
its tree, without one the trees.
Exit codes: 0 nothing of it is left, 1 something is (each with the reason), suspects are, or something
was lost that leaves it in doubt; 4 no such process.")]
pub struct Args {
    /// Roots of the trees: PID, or `PID@START_NS` for exactly that process
    #[arg(required_unless_present = "dry_run")]
    targets: Vec<Target>,
    /// Sent first to every member, to let it end by itself
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    signal: Option<Signal>,
    /// Time to wait after the first signal (10s when only --signal is given)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// Longest time to go on killing
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Say what would die, and kill nothing
    #[arg(long)]
    dry_run: bool,
    /// Kill also a tree that this command itself was started from, and clients of CUDA MPS
    #[arg(long)]
    force: bool,
    /// Spare this process with everything below it, or whoever matches; repeatable
    #[arg(long, value_name = "PID|PATTERN")]
    spare: Vec<Spare>,
    /// Run this command with a shell before anything is killed; where it fails, nothing is
    #[arg(long, value_name = "COMMAND", conflicts_with = "dry_run")]
    before_kill: Option<String>,
    /// End with 0 although there are suspects
    #[arg(long)]
    accept_suspects: bool,
    /// Kill suspects too, with everything below them
    #[arg(long, conflicts_with = "accept_suspects")]
    kill_suspects: bool,
    #[command(flatten)]
    gpus: DeviceArgs,
    #[command(flatten)]
    selectors: Selectors,
}

impl Args {
    fn options(&self, release: Option<ReleaseOptions>, spared: Vec<ProcessId>) -> KillOptions {
        let asks = self.signal.is_some() || self.grace.is_some();
        KillOptions {
            first_signal: asks.then(|| self.signal.unwrap_or(Signal::TERM)),
            grace: self
                .grace
                .unwrap_or(Duration::from_secs(if asks { 10 } else { 0 })),
            timeout: self.timeout,
            protected: Vec::new(),
            spared,
            dry_run: self.dry_run,
            force: self.force,
            suspects: match (self.accept_suspects, self.kill_suspects) {
                (true, _) => Suspects::Accept,
                (_, true) => Suspects::Kill,
                _ => Suspects::Report,
            },
            release,
            envoy: None,
        }
    }
}

#[cfg(feature = "agent")]
impl Args {
    /// Returns the requests to the agent that stand for this command; `None` where it has options
    /// that the agent does not know.
    pub(super) fn requests(&self) -> Option<Vec<super::asked::Request>> {
        let is_plain = !self.accept_suspects
            && !self.kill_suspects
            && self.spare.is_empty()
            && self.before_kill.is_none()
            && !self.selectors.are_given()
            && !self.gpus.are_chosen();
        if !is_plain {
            return None;
        }
        let ms = |time: Duration| format!("{}ms", time.as_millis());
        let options = [
            (
                "signal",
                self.signal.map(|signal| signal.number().to_string()),
            ),
            ("grace", self.grace.map(ms)),
            ("timeout", Some(ms(self.timeout))),
        ];
        let request = |target: &Target| {
            let process = target.for_agent()?;
            let body = super::asked::kill_body(&process, &options, self.dry_run, self.force);
            Some(super::asked::Request::post("/v1/kills", body))
        };
        self.targets.iter().map(request).collect()
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    if args.selectors.are_given() && !args.dry_run {
        return Err(Usage(UNNAMED.to_owned()).into());
    }
    if args.targets.is_empty() && !args.selectors.are_given() {
        return Err(Usage("name a process, or choose with a selector".to_owned()).into());
    }
    // Before anything that takes time: who starts from here on was not meant.
    let begun_ns = clock::boot_ns();
    crate::sys::priority::go_first();
    let runtime = current_thread()?;
    let load = load_options(verbose);
    let tracker = Tracker::open_or_load(&load)?;
    let snapshot = tracker.snapshot()?;
    let selection = args.selectors.prepare()?;
    // What the user wants to be run before is run as lifemon was started.
    if args.before_kill.is_none() {
        give_up_rights(true, false);
    }
    // All of them are there, or none is killed.
    let find = |target: &Target| {
        let root = target.find(&snapshot)?;
        target.check_is_older(root, begun_ns).map(|()| root)
    };
    let roots = args.targets.iter().map(find);
    let roots = roots.collect::<Result<Vec<_>, _>>().map_err(|error| {
        if tracker.is_pinned() {
            return error;
        }
        NoSuchProcess(format!("{error}; {WITHOUT_TRACKER}"))
    })?;
    let roots = if args.targets.is_empty() {
        let guard = Guard::new(&snapshot);
        selection.roots(&snapshot, |id| guard.check(id, args.force).is_ok())
    } else {
        roots
    };
    if roots.is_empty() {
        return Err(NoSuchProcess("the selectors mean no process".to_owned()).into());
    }
    let mut interrupts = runtime.block_on(async { Interrupts::listen() })?;
    let (mut tracker, mut code) = (Some(tracker), Code::Done);
    let is_one = roots.len() == 1;
    let mut reports = Vec::new();
    let forest = forest(&snapshot);
    // For all of them before the first is killed.
    let mut spared = Vec::new();
    for root in &roots {
        let some = sparing::spared(&args.spare, *root, &snapshot, &forest)?;
        if !args.dry_run && !args.force && args.before_kill.is_none() {
            sparing::check_mps(sparing::mps_clients(&forest, *root, &some))?;
        }
        spared.push(some);
    }
    for (index, root) in roots.into_iter().enumerate() {
        let spared = std::mem::take(&mut spared[index]);
        // It was part of a tree before it, perhaps: then it is dead by now.
        if index > 0 && !proc::is_live(root) && !args.dry_run {
            continue;
        }
        let mut tracker = tracker
            .take()
            .map_or_else(|| Tracker::open_or_load(&load), Ok)?;
        // Between two trees as well: loading a tracker takes a while.
        if interrupts.have_come() {
            anyhow::bail!(INTERRUPTED);
        }
        let mut marks = Marks::default();
        if args.dry_run {
            let clients = sparing::mps_clients(&forest, root, &spared);
            marks = Marks::look(&forest, &tracker.subreapers()?, root, clients, &spared);
        }
        if let Some(remedy) = &args.before_kill {
            sparing::before_kill(remedy, root, &forest)?;
        }
        match runtime.block_on(kill(tracker, root, spared, args, &mut interrupts)) {
            Ok(mut report) => {
                let members = report.members.len();
                report.members.retain(|member| {
                    let record = forest.record(&member.id);
                    !args.selectors.are_given()
                        || record.is_some_and(|record| selection.means(member.id, record))
                });
                marks.not_shown = members - report.members.len();
                if !args.dry_run && !report.is_done() {
                    code = Code::No;
                }
                if output.is_text() {
                    out::print(&if args.dry_run {
                        report::kill::would(&report, &marks)
                    } else {
                        report::kill::done(&report)
                    })?;
                } else {
                    reports.push((report, marks));
                }
            }
            Err(error) if index > 0 && !proc::is_live(root) => log::info!("{error:#}"),
            Err(error) => {
                print_json(&reports, is_one, args.dry_run)?;
                return Err(error);
            }
        }
    }
    print_json(&reports, is_one, args.dry_run)?;
    Ok(code)
}

async fn kill(
    tracker: Tracker,
    root: ProcessId,
    spared: Vec<ProcessId>,
    args: &Args,
    interrupts: &mut Interrupts,
) -> anyhow::Result<KillReport> {
    let options = args.options(super::devices::release(&args.gpus.files()?), spared);
    let killing = kill_tree(tracker, root, &options);
    tokio::pin!(killing);
    let begun = Instant::now();
    loop {
        tokio::select! {
            report = &mut killing => return Ok(report?),
            () = sleep(PROGRESS_AFTER) => say_waiting(root.pid, begun.elapsed()),
            () = interrupts.next() => anyhow::bail!(INTERRUPTED),
        }
    }
}

fn forest(snapshot: &Snapshot) -> Forest {
    Forest::new(snapshot.records.iter().copied())
}

/// Prints what came of the trees as one object; nothing where there is none.
fn print_json(reports: &[(KillReport, Marks)], is_one: bool, dry_run: bool) -> anyhow::Result<()> {
    if !reports.is_empty() {
        out::print(&report::kill::json(reports, is_one, dry_run)?)?;
    }
    Ok(())
}

/// Says on a terminal that the kill is under way.
fn say_waiting(pid: u32, elapsed: Duration) {
    if std::io::stderr().is_terminal() {
        eprintln!("killing the tree of {pid}: {} s", elapsed.as_secs());
    }
}

/// Reads `TERM`, `SIGTERM`, `term` or `15`.
pub(super) fn parse_signal(text: &str) -> Result<Signal, String> {
    Signal::named(text).ok_or_else(|| match text.parse::<i32>() {
        Ok(number) => format!("{number} is no signal"),
        Err(_) => format!("{text} is no signal; TERM, INT, or a number"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_as_they_are_typed() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(parse_signal(text), Ok(Signal::TERM));
        }
        for wrong in ["", "0", "99", "TERMINATE"] {
            assert!(parse_signal(wrong).is_err(), "{wrong:?} parsed");
        }
    }
}

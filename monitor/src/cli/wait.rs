//! `lifemon wait`: waits for the end of processes, each stage of it by its name.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::devices::DeviceArgs;
use super::target::Target;
use super::{Code, Interrupts, Output, give_up_rights, load_options, parse_duration};
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::nvml::Server;
use crate::gpu::release::{News, Releases};
use crate::kernel::{Tracker, WatchOptions, clock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Death, Process};
use crate::report::out;
use crate::report::wait::{self as report, Waited};
use crate::session::{Session, Update};
use crate::sys::runtime::current_thread;
use crate::watch::What;

/// Interval at which a process that has died is asked whether it is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(20);

/// The exit code after Ctrl-C: that of a command that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Longest time to wait for a driver where no limit was given.
const DRIVER_LIMIT: Duration = Duration::from_hours(24);

/// Conditions that end the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Until {
    /// Nothing of the trees can run again
    Extinct,
    /// A process of the trees has died
    AnyExit,
    /// The named processes are gone: memory and files released, children reparented
    Gone,
    /// The trees are gone, and no driver accounts GPU memory to them any more
    Released,
}

impl Until {
    const fn word(self) -> &'static str {
        match self {
            Self::Extinct => "extinct",
            Self::AnyExit => "any-exit",
            Self::Gone => "gone",
            Self::Released => "released",
        }
    }
}

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
    let begun = Instant::now();
    let mut waiting = Waiting::begin(args, verbose)?;
    let deadline = args.timeout.map(|timeout| begun + timeout);
    let outcome = tokio::select! {
        held = until(deadline, waiting.holds(args.until)) => held?,
        () = interrupts.next() => return Ok(Code::Command(INTERRUPTED)),
    };
    let holds = outcome.unwrap_or_default();
    let waited = Waited {
        until: args.until.word(),
        holds,
        targets: &waiting.targets,
        died: waiting.died.as_ref(),
        alive: waiting.alive(),
        trouble: waiting.trouble.take(),
        elapsed: begun.elapsed(),
        losses: &waiting.losses(),
    };
    let text = if output.is_text() {
        report::text(&waited, out::wants_colour())
    } else {
        report::json(&waited)?
    };
    out::print(&text)?;
    Ok(if holds { Code::Done } else { Code::No })
}

/// Waits for a condition; `None` when the time is over first.
async fn until(
    deadline: Option<Instant>,
    condition: impl Future<Output = anyhow::Result<bool>>,
) -> anyhow::Result<Option<bool>> {
    match deadline {
        Some(deadline) => timeout_at(deadline, condition).await.ok().transpose(),
        None => condition.await.map(Some),
    }
}

/// A wait under way.
struct Waiting {
    /// The processes that were named.
    targets: Vec<Process>,
    /// Their trees, watched as one; `None` where nothing of them is alive.
    session: Option<Session>,
    /// Of the named, those that are not known to be gone yet.
    not_gone: Vec<ProcessId>,
    /// Named processes that were dead when the watching began.
    died: Option<(Process, Option<Death>)>,
    releases: Option<Releases>,
    trouble: Option<String>,
}

impl Waiting {
    /// Finds the processes and begins to watch what is alive of their trees.
    fn begin(args: &Args, verbose: u8) -> anyhow::Result<Self> {
        let files = args.gpus.files()?;
        let tracker = Tracker::open_or_load(&load_options(verbose))?;
        give_up_rights(false, false);
        let snapshot = tracker.snapshot()?;
        let forest = Forest::new(snapshot.records.iter().copied());
        let found = args.targets.iter().map(|target| target.find(&snapshot));
        let ids = found.collect::<Result<Vec<_>, _>>()?;
        // A tree whose root has died is what is alive of it.
        let mut seen = HashSet::new();
        let tops: Vec<_> = ids
            .iter()
            .flat_map(|id| {
                if forest.is_live(id) {
                    vec![*id]
                } else {
                    forest.living(*id)
                }
            })
            .filter(|id| seen.insert(*id))
            .collect();
        let targets: Vec<_> = ids
            .iter()
            .filter_map(|id| Some(Process::of_record(*id, forest.record(id)?)))
            .collect();
        let session = match tops.split_first() {
            Some((first, others)) => {
                let options = WatchOptions::default();
                Some(Session::start_all(tracker, *first, others, &options)?.0)
            }
            None => None,
        };
        let is_watched = |id: &ProcessId| {
            let session = session.as_ref();
            session.is_some_and(|session| session.watch().is_live(id))
        };
        let dead = targets.iter().find(|process| !is_watched(&process.id));
        let died = dead.map(|process| {
            let record = forest.record(&process.id);
            let death = record.filter(|_| forest.is_dead(&process.id));
            (process.clone(), death.map(Death::of_record))
        });
        let follow = || Releases::follow(Server::of_this_program(), DRIVER_LIMIT);
        let follows = args.until == Until::Released && files.exist();
        Ok(Self {
            targets,
            session,
            not_gone: ids,
            died,
            releases: follows.then(follow),
            trouble: None,
        })
    }

    /// Waits until the condition holds; false where it never will be known.
    async fn holds(&mut self, condition: Until) -> anyhow::Result<bool> {
        if condition == Until::AnyExit && self.died.is_some() {
            return Ok(true);
        }
        loop {
            self.not_gone.retain(|id| !proc::is_gone(*id));
            if condition == Until::Gone && self.not_gone.is_empty() {
                return Ok(true);
            }
            let Some(session) = &mut self.session else {
                match condition {
                    Until::Gone => sleep(GONE_INTERVAL).await,
                    Until::Released => return Ok(self.released().await),
                    Until::Extinct | Until::AnyExit => return Ok(true),
                }
                continue;
            };
            let has_dying = self.not_gone.iter().any(|id| !session.watch().is_live(id));
            let updates = tokio::select! {
                updates = session.next() => updates?,
                () = sleep(GONE_INTERVAL), if has_dying => continue,
            };
            if self.apply(&updates, condition) {
                return Ok(true);
            }
        }
    }

    /// Takes note of what has happened; returns whether the condition holds.
    fn apply(&mut self, updates: &[Update], condition: Until) -> bool {
        for update in updates {
            match update {
                Update::Happening(happening) => {
                    let What::Exit { death, .. } = &happening.what else {
                        continue;
                    };
                    let process = &happening.process;
                    if let Some(releases) = &self.releases {
                        let at_ns = happening.at_ns.unwrap_or_else(clock::boot_ns);
                        releases.died(process.id, at_ns);
                    }
                    if condition == Until::AnyExit {
                        self.died = Some((process.clone(), death.clone()));
                        return true;
                    }
                }
                Update::Extinct if condition == Until::Extinct => return true,
                Update::End => {
                    self.session = None;
                    if condition == Until::Extinct {
                        return true;
                    }
                }
                Update::Extinct | Update::Lost { .. } => {}
            }
        }
        false
    }

    /// Waits until no driver accounts memory to the dead any more.
    async fn released(&mut self) -> bool {
        let Some(releases) = &mut self.releases else {
            return true;
        };
        releases.close();
        while let Some(news) = releases.next().await {
            match news {
                News::Released { .. } => {}
                News::StillHeld { id, state, .. } => {
                    self.trouble = Some(format!("GPU memory is still held by {}: {state}", id.pid));
                }
                News::Hung => {
                    self.trouble = Some("the driver of the GPUs does not answer".to_owned());
                }
            }
        }
        self.trouble.is_none()
    }

    /// Returns how many processes of the trees are alive.
    fn alive(&self) -> u64 {
        let session = self.session.as_ref();
        session.map_or(0, |session| session.watcher().counters().live)
    }

    fn losses(&self) -> Vec<Loss> {
        let session = self.session.as_ref();
        session.map_or_else(Vec::new, |session| session.standing_losses().to_vec())
    }
}

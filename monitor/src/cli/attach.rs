//! `lifemon attach`: shows a tree as it is now, then reports every event in it. What an event means
//! is decided in `watch`, how it is printed in `report::stream`.

#[cfg(feature = "agent")]
pub(super) mod told;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::devices::DeviceArgs;
use super::target::Target;
use super::{
    Code, Interrupts, Output, give_up_rights, load_options, parse_capacity, parse_duration,
    parse_ring_size,
};
use crate::ProcessId;
use crate::forest::Forest;
use crate::gpu::holders::DeviceFiles;
use crate::gpu::nvml::Server;
use crate::gpu::release::{News, Releases};
use crate::kernel::{Error, LoadOptions, Tracker, WatchOptions, clock, left};
use crate::kill::{self, Force, KillError};
use crate::loss::Loss;
use crate::orphan;
use crate::process::{Process, Sender};
use crate::report::out;
use crate::report::stream::{EVENTS, Printer, SenderRoot, Summary};
use crate::session::{Session, Update};
use crate::sys::runtime::current_thread;
use crate::watch::What;

/// Arguments of `attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon attach 4200                      until nothing of the tree is left, or Ctrl-C
  sudo lifemon attach 4200 --for 10s            for ten seconds
  sudo lifemon attach 4200 --kill-on-root-exit  when 4200 ends, kill what it leaves behind
  sudo lifemon attach 4200 --events exit,orphaned
  sudo lifemon attach 4200 -o json | jq -c 'select(.event == \"exit\")'

Ends with 0 when the tree is extinct, the time is over or Ctrl-C was pressed; with 1 when that left
something alive that was to be killed, or what followed is not known: the tracker was switched off, or
the agent that has told it has ended.")]
pub struct Args {
    /// Root of the tree: PID, or `PID@START_NS` for exactly that process
    target: Target,
    /// Stop after this long: 10s, 500ms, 5m, 1h
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    period: Option<Duration>,
    /// Only events of these kinds, separated by commas: exit,orphaned. The first and the last line,
    /// and what was lost, are always there
    #[arg(long, value_name = "EVENT", value_delimiter = ',', value_parser = parse_event)]
    events: Vec<&'static str>,
    /// When the root dies, kill the rest of the tree
    #[arg(long)]
    kill_on_root_exit: bool,
    /// Size of the event buffer: a power of two
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_ring_size)]
    ring_size: u32,
    /// Processes to have room for, when the host-wide tracker is off
    #[arg(long, value_name = "N", default_value = "65536", value_parser = parse_capacity)]
    max_processes: u32,
    #[command(flatten)]
    gpus: DeviceArgs,
    /// Longest time to wait until the GPU memory of the dead is released
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    release_timeout: Duration,
    /// Work as on kernels before 6.16 (for tests)
    #[arg(long, hide = true)]
    without_group_dead: bool,
    /// Work as on kernels from 7.0 on (for tests)
    #[arg(long, hide = true)]
    preemptible: bool,
}

impl Args {
    fn load_options(&self, verbose: u8) -> LoadOptions {
        LoadOptions {
            max_processes: self.max_processes,
            without_group_dead: self.without_group_dead,
            preemptible: self.preemptible,
            ..load_options(verbose)
        }
    }
}

/// Reads `exit` and the like.
fn parse_event(text: &str) -> Result<&'static str, String> {
    let word = EVENTS.into_iter().find(|word| *word == text);
    word.ok_or_else(|| format!("expected one of {}", EVENTS.join(", ")))
}

/// The dead whose names are kept until their GPU memory is released: those who die later push out
/// the oldest, of which the news has the identity alone.
const DEAD_MAX: usize = 4_096;

/// Creators of who has sent a signal that are looked at.
const SENDERS_CREATORS_MAX: usize = 256;

/// GPU memory of the dead, followed where this host has GPUs.
struct Following {
    releases: Option<Releases>,
    /// The dead that may hold some: the last [`DEAD_MAX`].
    dead: HashMap<ProcessId, Process>,
    /// Their order.
    order: VecDeque<ProcessId>,
    /// True once no member can die any more.
    is_last: bool,
}

impl Following {
    fn begin(devices: &DeviceFiles, timeout: Duration) -> Self {
        let follow = || Releases::follow(Server::of_this_program(), timeout);
        Self {
            releases: devices.exist().then(follow),
            dead: HashMap::new(),
            order: VecDeque::new(),
            is_last: false,
        }
    }

    /// Tells it of deaths.
    fn tell(&mut self, updates: &[Update]) {
        let Some(releases) = &self.releases else {
            return;
        };
        let mut dead = Vec::new();
        for update in updates {
            if let Update::Happening(happening) = update
                && let What::Exit { .. } = happening.what
            {
                let id = happening.process.id;
                releases.died(id, happening.at_ns.unwrap_or_else(clock::boot_ns));
                dead.push(happening.process.clone());
            }
        }
        for process in dead {
            self.remember(process);
        }
    }

    /// Remembers who it was, for the news. Most hold nothing, and there is no news of them.
    fn remember(&mut self, process: Process) {
        if self.order.len() == DEAD_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.dead.remove(&oldest);
        }
        self.order.push_back(process.id);
        self.dead.insert(process.id, process);
    }

    /// Takes note that no member will die any more; returns whether there may be news nevertheless.
    fn end(&mut self) -> bool {
        self.is_last = true;
        if let Some(releases) = &mut self.releases {
            releases.close();
        }
        self.releases.is_some()
    }

    /// Waits for the next news. `None` once: there will be no more.
    async fn next(&mut self) -> Option<(News, Option<Process>)> {
        let Some(releases) = &mut self.releases else {
            return std::future::pending().await;
        };
        let Some(news) = releases.next().await else {
            self.releases = None;
            (self.dead, self.order) = Default::default();
            return None;
        };
        let of = match &news {
            News::Released { id, .. } | News::StillHeld { id, .. } => self.dead.remove(id),
            News::Hung | News::Failed(_) => None,
        };
        Some((news, of))
    }
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    // Also for who only looks on: where tracepoints can be preempted, a watcher that loses the
    // processor in the middle of a call on a BPF map lets the kernel skip hooks.
    crate::sys::priority::go_first();
    let runtime = current_thread()?;
    runtime.block_on(attach(args, output, verbose))
}

async fn attach(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    // From here on a signal ends the loop below, and what was attached is given back.
    let mut interrupts = Interrupts::listen()?;
    let devices = args.gpus.files()?;
    let tracker = Tracker::open_or_load(&args.load_options(verbose))?;
    give_up_rights(args.kill_on_root_exit, false);
    let is_pinned = tracker.is_pinned();
    let snapshot = tracker.snapshot()?;
    let root = args.target.find_shown(&snapshot)?;
    let watch = WatchOptions {
        ring_bytes: args.ring_size,
        is_for_kill: false,
    };
    let own = args
        .kill_on_root_exit
        .then(|| kill::check(root, &snapshot, true).map_err(KillError::from))
        .transpose()?;
    drop(snapshot);
    let (mut session, mut start) = Session::start(tracker, root, &watch)?;
    if let Some(own) = own {
        session.spare(own)?;
        start.members.retain(|member| member.id != own);
    }
    let mut printer = printer(output, root).only(&args.events);
    out::print(&printer.attached(&start, is_pinned))?;
    let mut kernel_log = (verbose >= 2)
        .then(|| session.watcher_mut().tracker_mut().debug_log())
        .transpose()?;
    let deadline = args.period.map(|period| Instant::now() + period);
    let mut releases = Following::begin(&devices, args.release_timeout);
    let mut force = None;
    loop {
        if args.kill_on_root_exit && force.is_none() {
            force = kill_rest(&mut session)?;
        }
        if let Some(log) = &mut kernel_log {
            log.flush();
        }
        let updates = tokio::select! {
            updates = next(&mut session, &mut force), if !releases.is_last => updates?,
            news = releases.next() => match news {
                Some((news, of)) => {
                    out::print(&printer.news(&news, of.as_ref()))?;
                    continue;
                }
                None if releases.is_last => break,
                None => continue,
            },
            () = at(deadline) => {
                show_rest(&mut printer, &mut session)?;
                break;
            }
            () = interrupts.next() => {
                show_rest(&mut printer, &mut session)?;
                break;
            }
        };
        releases.tell(&updates);
        show(&mut printer, &updates, &session)?;
        if updates.iter().any(|update| matches!(update, Update::End)) && !releases.end() {
            break;
        }
    }
    if !is_pinned {
        left::keep(&start.root.who(), &session.watch().orphans());
    }
    close(&mut printer, &session, force.is_some())
}

/// Prints what has happened and was not printed yet.
fn show_rest(printer: &mut Printer, session: &mut Session) -> anyhow::Result<()> {
    match session.rest() {
        Ok(updates) => show(printer, &updates, session),
        Err(error) => {
            log::warn!("the last events are not known: {error}");
            Ok(())
        }
    }
}

/// Prints what has happened.
fn show(printer: &mut Printer, updates: &[Update], session: &Session) -> anyhow::Result<()> {
    let losses = session.standing_losses();
    let text: String = updates
        .iter()
        .map(|update| printer.update(update, losses, sender_root(session, update).as_ref()))
        .collect();
    out::print(&text)?;
    Ok(())
}

/// Returns the root of the tree of who has sent the signal that an update is about.
fn sender_root(session: &Session, update: &Update) -> Option<SenderRoot> {
    let Update::Happening(happening) = update else {
        return None;
    };
    let What::Signal {
        sender: Some(Sender::Process(sender)),
        ..
    } = &happening.what
    else {
        return None;
    };
    let mut line = Vec::new();
    let mut at = sender.id;
    while line.len() < SENDERS_CREATORS_MAX
        && let Ok(Some(record)) = session.watcher().tracker().record(&at)
    {
        line.push((at, record));
        at = record.creator;
    }
    let forest = Forest::new(line);
    let root = orphan::root_of(&forest, sender.id);
    Some(SenderRoot {
        who: Process::of_record(root, forest.record(&root)?).who(),
        alive: forest.is_live(&root),
    })
}

/// Begins to kill the rest of the tree once the root is dead. The tree that dies is the one that is
/// watched, so its deaths are reported like any others.
fn kill_rest(session: &mut Session) -> Result<Option<Force>, Error> {
    let is_extinct = session.watcher().counters().live == 0;
    if is_extinct || session.watch().is_live(&session.watcher().root()) {
        return Ok(None);
    }
    // The session learns by itself who is gone.
    let force = Force::begin(session.watcher_mut())?;
    Ok(Some(force.without_descriptors()))
}

/// Begins the stream in the format that was asked for.
fn printer(output: Output, root: ProcessId) -> Printer {
    match output {
        _ if output.is_text() => Printer::text(out::wants_colour()),
        _ => Printer::json(root),
    }
}

/// Returns the next updates; kills meanwhile, where that has begun.
async fn next(session: &mut Session, force: &mut Option<Force>) -> Result<Vec<Update>, Error> {
    match force {
        Some(force) => force.next(session).await,
        None => session.next().await,
    }
}

/// Prints the closing summary; the watcher is given back when the session is dropped.
fn close(printer: &mut Printer, session: &Session, killed: bool) -> anyhow::Result<Code> {
    let counters = session.watcher().counters();
    let summary = Summary {
        at_ns: clock::boot_ns(),
        totals: session.watch().totals(),
        alive: counters.live,
        orphans: session.watch().orphans(),
        lost_events: counters.lost_events,
        losses: session.standing_losses(),
    };
    out::print(&printer.detached(&summary))?;
    let cut_off = session.standing_losses().contains(&Loss::SwitchedOff);
    let survived = killed && counters.live > 0;
    Ok(if cut_off || survived {
        Code::No
    } else {
        Code::Done
    })
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_deaths_are_not_all_remembered() {
        let mut following = Following {
            releases: None,
            dead: HashMap::new(),
            order: VecDeque::new(),
            is_last: false,
        };
        let id = |pid| ProcessId::new(pid, 5);
        for pid in 1..=60_000 {
            following.remember(Process::unknown(id(pid)));
        }
        assert_eq!(
            (following.dead.len(), following.order.len()),
            (DEAD_MAX, DEAD_MAX)
        );
        assert!(following.dead.contains_key(&id(60_000)) && !following.dead.contains_key(&id(1)));
    }
}

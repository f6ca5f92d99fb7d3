//! `lifemon attach`: the tree now, then what happens to it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::target::Target;
use super::{Code, Output, parse_capacity, parse_duration, parse_ring_size};
use crate::ProcessId;
use crate::kernel::clock::{self, WallClock};
use crate::kernel::{Error, LoadOptions, Tracker, WatchOptions};
use crate::kill::{self, Force, KillError};
use crate::proc;
use crate::report::json::{Stream, Summary};
use crate::report::out;
use crate::report::text::Text;
use crate::session::{Loss, Session, Start, Update};
use crate::watch::{Happening, What};

/// What was typed after `attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo lifemon attach 4200                      until nothing of the tree is left, or Ctrl-C
  sudo lifemon attach 4200 --for 10s            for ten seconds
  sudo lifemon attach 4200 --kill-on-root-exit  when 4200 ends, kill what it leaves behind
  sudo lifemon attach 4200 -o json | jq -c 'select(.event == \"exit\")'

Ends with 0 when the tree is extinct, the time is over or Ctrl-C was pressed; with 1 when that left
something alive that was to be killed.")]
pub struct Args {
    /// Root of the tree: PID, or `PID@START_NS` for exactly that process
    target: Target,
    /// Stop after this long: 10s, 500ms, 5m, 1h
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    period: Option<Duration>,
    /// When the root dies, kill the rest of the tree
    #[arg(long)]
    kill_on_root_exit: bool,
    /// Size of the event buffer: a power of two
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_ring_size)]
    ring_size: u32,
    /// Processes to have room for, when the host-wide tracker is off
    #[arg(long, value_name = "N", default_value = "65536", value_parser = parse_capacity)]
    max_processes: u32,
    /// Work as on kernels before 6.16 (for tests)
    #[arg(long, hide = true)]
    without_group_dead: bool,
}

/// Where the updates go.
enum Printer {
    Json(Stream),
    Text(Text),
}

pub(super) fn run(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    super::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(attach(args, output, verbose))
}

async fn attach(args: &Args, output: Output, verbose: u8) -> anyhow::Result<Code> {
    // From here on a signal ends the loop below, and what was attached is given back.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let options = LoadOptions {
        max_processes: args.max_processes,
        debug: verbose >= 2,
        without_group_dead: args.without_group_dead,
    };
    let tracker = Tracker::open_or_load(&options)?;
    let is_pinned = tracker.is_pinned();
    let snapshot = tracker.snapshot()?;
    let root = args.target.find(&snapshot)?;
    let watch = WatchOptions {
        ring_bytes: args.ring_size,
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
    let mut printer = Printer::new(output, root);
    out::print(&printer.attached(&start, is_pinned))?;
    let mut kernel_log = (verbose >= 2)
        .then(|| session.watcher_mut().tracker_mut().debug_log())
        .transpose()?;
    let deadline = args.period.map(|period| Instant::now() + period);
    let mut force = None;
    loop {
        let due = if args.kill_on_root_exit {
            kill_rest(&mut session, &mut force).await?
        } else {
            None
        };
        if let Some(log) = &mut kernel_log {
            log.flush();
        }
        let updates = tokio::select! {
            updates = session.next() => updates?,
            () = at(deadline) => break,
            () = at(due) => continue,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let losses = session.standing_losses();
        let text: String = updates
            .iter()
            .map(|update| printer.update(update, losses))
            .collect();
        out::print(&text)?;
        if updates.iter().any(|update| matches!(update, Update::End)) {
            break;
        }
    }
    close(&mut printer, &session, force.is_some())
}

/// Once the root is dead, kills the rest of the tree, a step at a time; when the next step is due. The
/// tree that dies is the one that is watched, so its deaths are told like any others.
async fn kill_rest(
    session: &mut Session,
    force: &mut Option<Force>,
) -> Result<Option<Instant>, Error> {
    let is_over = session.watcher().counters().live == 0;
    if is_over || session.watch().is_alive(&session.watcher().root()) {
        return Ok(None);
    }
    let force = match force {
        Some(force) => force,
        None => force.insert(Force::begin(session.watcher_mut())?),
    };
    let due = force.advance(session.watcher()).await?;
    // The session learns by itself who is gone.
    force.let_go();
    Ok(Some(due))
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

impl Printer {
    fn new(output: Output, root: ProcessId) -> Self {
        let clock = WallClock::now();
        match output {
            Output::Json => Self::Json(Stream::new(clock, root)),
            Output::Text => Self::Text(Text::new(clock, out::wants_colour())),
        }
    }

    fn attached(&mut self, start: &Start, is_pinned: bool) -> String {
        match self {
            Self::Json(stream) => stream.attached(start, clock::boot_ns(), is_pinned),
            Self::Text(text) => text.attached(start, is_pinned),
        }
    }

    fn update(&mut self, update: &Update, losses: &[Loss]) -> String {
        let now = clock::boot_ns();
        match (self, update) {
            (Self::Json(stream), Update::Happening(happening)) => {
                stream.happening(happening, parent_of_orphan(happening))
            }
            (Self::Text(text), Update::Happening(happening)) => {
                text.happening(happening, parent_of_orphan(happening))
            }
            (
                Self::Json(stream),
                Update::Lost {
                    loss,
                    count,
                    recovered,
                    complete,
                },
            ) => stream.lost(now, *loss, *count, *recovered, *complete),
            (
                Self::Text(text),
                Update::Lost {
                    loss,
                    count,
                    recovered,
                    ..
                },
            ) => text.lost(now, *loss, *count, *recovered),
            (Self::Json(stream), Update::Extinct) => stream.extinct(now, losses.is_empty()),
            (Self::Text(text), Update::Extinct) => text.extinct(now, losses.is_empty()),
            (_, Update::End) => String::new(),
        }
    }

    fn detached(&mut self, summary: &Summary<'_>) -> String {
        match self {
            Self::Json(stream) => stream.detached(summary),
            Self::Text(text) => text.detached(summary),
        }
    }
}

/// The parent that `/proc` shows for an orphan, which is the new one: its creator is gone.
fn parent_of_orphan(happening: &Happening) -> Option<u32> {
    match happening.what {
        What::Orphaned { .. } => proc::parent(happening.process.id),
        _ => None,
    }
}

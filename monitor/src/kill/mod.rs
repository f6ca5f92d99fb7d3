//! Exact kill: every process of a tree, nobody else, and the proof that it is over.
//!
//! The tree to kill is a watched tree of its own, with its own live counter. It is condemned; from
//! then on what its members create is condemned as well, and the closer lets none of them back to
//! user code (I4). What never calls the kernel is met by killing passes over the membership map,
//! each signal through the sandwich of [`strike`] (I3). The counter at 0 is the proof (I2).

mod refuse;
mod strike;
mod survivor;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout_at};

pub use refuse::KillRefusal;
pub use strike::Outcome;

use crate::kernel::{Error, Tracker, WatchOptions};
use crate::process::{Death, Process, Who};
use crate::session::{Loss, Session, Start, Update};
use crate::watch::What;

/// Pause between two killing passes, when no event cuts it short.
const PASS_PAUSE: Duration = Duration::from_millis(1);

/// How long to wait for the killed to be gone, once none of them can run any more. Memory of very
/// large processes takes its time; the kill is proven before.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a tree is killed.
#[derive(Debug, Clone)]
pub struct KillOptions {
    /// Sent to every member first, to let it end by itself.
    pub first_signal: Option<Signal>,
    /// How long to wait after the first signal.
    pub grace: Duration,
    /// How long to go on killing.
    pub timeout: Duration,
    /// Never hit, nor what they create. This process is always among them.
    pub protected: Vec<ProcessId>,
    /// Say what would die, and kill nothing.
    pub dry_run: bool,
    /// Kill also a tree that this process descends from.
    pub force: bool,
}

impl Default for KillOptions {
    fn default() -> Self {
        Self {
            first_signal: None,
            grace: Duration::ZERO,
            timeout: Duration::from_secs(30),
            protected: Vec::new(),
            dry_run: false,
            force: false,
        }
    }
}

/// What came of a kill.
#[derive(Debug, Clone)]
pub struct KillReport {
    /// The root.
    pub root: Process,
    /// The tree when the kill began, each creator before what it created.
    pub members: Vec<Process>,
    /// Every process that died, and how; `None` where only the fact is known.
    pub killed: Vec<(Process, Option<Death>)>,
    /// Members that were dying already when a signal was to be sent.
    pub already_dying: Vec<Who>,
    /// Members that are still alive, each with the reason.
    pub survivors: Vec<(Process, String)>,
    /// Whether none of the tree can run again: its live counter is 0.
    pub extinct: bool,
    /// What makes the answer incomplete.
    pub losses: Vec<Loss>,
    /// From the beginning until it was extinct, or until the time was over.
    pub elapsed: Duration,
    /// Until the last of them was gone, its memory released; `None` when that was not seen.
    pub gone: Option<Duration>,
}

/// Why a kill could not be done.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// It must not be done.
    #[error(transparent)]
    Refused(#[from] KillRefusal),
    /// The tracker failed.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Kills the tree of `root`, which may be a ghost: then its descendants die.
///
/// Dropping the future gives everything back: nothing stays condemned, and nothing attached. Signals
/// that were sent stay sent.
///
/// # Errors
/// [`KillError`]. Survivors are no error: the report has them.
pub async fn kill_tree(
    tracker: Tracker,
    root: ProcessId,
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    let begun = Instant::now();
    let snapshot = tracker.snapshot()?;
    let own = refuse::check(root, &snapshot, options.force)?;
    let (session, start) = Session::start(tracker, root, &WatchOptions::default())?;
    let mut killing = Killing::new(session, start, begun);
    for id in options.protected.iter().copied().chain([own]) {
        killing.session.spare(id)?;
        killing.members.retain(|member| member.id != id);
    }
    if options.dry_run {
        return Ok(killing.report(false));
    }
    if let Some(signal) = options.first_signal {
        killing.ask(signal, options.grace).await?;
    }
    let deadline = Instant::now() + options.timeout;
    let extinct = killing.is_extinct() || killing.kill(deadline).await?;
    killing.elapsed = begun.elapsed();
    if extinct {
        killing
            .wait_until_gone(Instant::now() + GONE_TIMEOUT)
            .await?;
    }
    Ok(killing.report(true))
}

/// A kill under way.
struct Killing {
    session: Session,
    root: Process,
    members: Vec<Process>,
    begun: Instant,
    elapsed: Duration,
    gone: Option<Duration>,
    /// Whom SIGKILL was sent to.
    struck: HashSet<ProcessId>,
    dead: HashMap<ProcessId, (Process, Option<Death>)>,
    order: Vec<ProcessId>,
    already_dying: Vec<ProcessId>,
    denied: HashMap<ProcessId, String>,
    ended: bool,
}

impl Killing {
    fn new(session: Session, start: Start, begun: Instant) -> Self {
        Self {
            session,
            root: start.root,
            members: start.members,
            begun,
            elapsed: Duration::ZERO,
            gone: None,
            struck: HashSet::new(),
            dead: HashMap::new(),
            order: Vec::new(),
            already_dying: Vec::new(),
            denied: HashMap::new(),
            ended: false,
        }
    }

    fn is_extinct(&self) -> bool {
        self.session.watcher().counters().live == 0
    }

    /// Asks every member to end, and waits for the grace or the end of all.
    async fn ask(&mut self, signal: Signal, grace: Duration) -> Result<(), Error> {
        let until = Instant::now() + grace;
        for id in self.session.watcher().live_members()? {
            strike::strike(self.session.watcher().tracker(), id, signal)?;
        }
        while !self.is_extinct() && Instant::now() < until {
            self.follow(until).await?;
        }
        Ok(())
    }

    /// Kills until none can run, or until the deadline; whether the tree is extinct.
    async fn kill(&mut self, deadline: Instant) -> Result<bool, Error> {
        let _priority = strike::Priority::raise();
        self.session.watcher().condemn()?;
        let mut closer = self.session.watcher_mut().closer()?;
        // Beside the first passes: on an overloaded host attaching can take seconds.
        let mut attaching = Some(tokio::task::spawn_blocking(move || {
            let attached = closer.attach();
            attached.map(|()| closer)
        }));
        let mut _closer = None;
        while !self.is_extinct() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.pass()?;
            if let Some(handle) = attaching.take_if(|handle| handle.is_finished())
                && let Ok(attached) = handle.await
            {
                match attached {
                    Ok(closer) => _closer = Some(closer),
                    // The passes go on alone; what forks faster than they run shows as survivors.
                    Err(error) => log::warn!("killing without the closer: {error}"),
                }
            }
            self.follow(deadline.min(Instant::now() + PASS_PAUSE))
                .await?;
        }
        Ok(true)
    }

    /// Sends SIGKILL to every living member that has not had it yet.
    fn pass(&mut self) -> Result<(), Error> {
        for id in self.session.watcher().live_members()? {
            if self.struck.contains(&id) {
                continue;
            }
            match strike::strike(self.session.watcher().tracker(), id, Signal::SIGKILL)? {
                Outcome::Sent => {
                    self.struck.insert(id);
                    self.denied.remove(&id);
                }
                Outcome::Dying => {
                    self.struck.insert(id);
                    self.already_dying.push(id);
                }
                Outcome::Denied(why) => {
                    self.denied.insert(id, why);
                }
            }
        }
        Ok(())
    }

    /// Takes in what happens until `until`, or until something has happened.
    async fn follow(&mut self, until: Instant) -> Result<(), Error> {
        let Ok(updates) = timeout_at(until, self.session.next()).await else {
            return Ok(());
        };
        for update in updates? {
            match update {
                Update::Happening(happening) => {
                    if let What::Exit { death, .. } = happening.what {
                        let id = happening.process.id;
                        self.order.push(id);
                        self.dead.insert(id, (happening.process, death));
                    }
                }
                Update::End => self.ended = true,
                Update::Lost { .. } | Update::Extinct => {}
            }
        }
        Ok(())
    }

    /// Waits until memory and files of all are released.
    async fn wait_until_gone(&mut self, until: Instant) -> Result<(), Error> {
        while !self.ended && Instant::now() < until {
            self.follow(until).await?;
        }
        if self.ended {
            self.gone = Some(self.begun.elapsed());
        }
        Ok(())
    }

    fn report(mut self, acted: bool) -> KillReport {
        let alive = if acted {
            self.session.watcher().live_members()
        } else {
            Ok(Vec::new())
        };
        let known: HashMap<_, _> = self
            .members
            .iter()
            .map(|member| (member.id, member))
            .collect();
        let survivors = alive.unwrap_or_default().into_iter().map(|id| {
            let process = known
                .get(&id)
                .copied()
                .cloned()
                .unwrap_or(Process::unknown(id));
            let reason = self
                .denied
                .remove(&id)
                .unwrap_or_else(|| survivor::reason(id.pid));
            (process, reason)
        });
        let survivors = survivors.collect();
        let already_dying = std::mem::take(&mut self.already_dying);
        let already_dying = already_dying.into_iter().map(|id| {
            let name = known.get(&id).and_then(|process| process.name.clone());
            Who { id, name }
        });
        let already_dying = already_dying.collect();
        let killed = self
            .order
            .iter()
            .filter_map(|id| self.dead.remove(id))
            .collect();
        KillReport {
            killed,
            already_dying,
            survivors,
            extinct: self.is_extinct(),
            losses: self.session.standing_losses().to_vec(),
            elapsed: self.elapsed,
            gone: self.gone,
            root: self.root,
            members: self.members,
        }
    }
}

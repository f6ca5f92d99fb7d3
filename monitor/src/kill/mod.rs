//! Exact kill: every process of a tree, nobody else, and the proof that it is over.
//!
//! The tree to kill is a watched tree of its own, with its own live counter. It is condemned; from
//! then on what its members create is condemned as well, and the closer lets none of them back to
//! user code (I4). What never calls the kernel is met by killing passes over the membership map,
//! each signal through the sandwich of [`strike`] (I3). The counter at 0 is the proof (I2).
//!
//! Where the root is older than tracking, whoever is older as well belongs by its present parents. That
//! takes in no stranger: an orphan goes to an ancestor of its (a subreaper), so what the root or a member
//! has adopted descends from it. There are two exceptions. Process 1 adopts everybody, and is refused. The
//! init of a pid namespace adopts what a process outside has put into its namespace, and takes that
//! along when it dies, whoever kills it. What is missed are orphans that went to somebody above
//! the root before tracking began: the report says that the root was inferred.
//!
//! What holds a process that has SIGKILL pending, held against everybody: a wait in the kernel that is
//! not interruptible, a frozen cgroup of version 1, a tracer that stops it in its exit. Such a survivor
//! runs no user code any more, and dies when it is let go.

mod force;
mod refuse;
mod strike;
mod survivor;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout_at};

pub(crate) use force::Force;
pub use refuse::KillRefusal;
pub(crate) use refuse::{Guard, check};

use crate::gpu::nvml::{ANSWER_TIMEOUT, Server};
use crate::gpu::release::{News, Releases};
use crate::kernel::{Error, Tracker, WatchOptions, clock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Death, Process, Who};
use crate::session::{Session, Start, Update};
use crate::sys::pidfd;
use crate::watch::What;
use force::Ended;

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
    /// Wait until the GPU memory of the killed is released.
    pub release: Option<ReleaseOptions>,
}

/// How the release of GPU memory is waited for.
#[derive(Debug, Clone)]
pub struct ReleaseOptions {
    /// The `lifemon` binary, which asks the driver in a process of its own.
    pub program: PathBuf,
    /// How long to wait.
    pub timeout: Duration,
}

/// What became of the GPU memory of the killed.
#[derive(Debug, Clone, Default)]
pub struct Release {
    /// Those that held some and have given it back, and how long after they began to die.
    pub released: Vec<(ProcessId, Duration)>,
    /// Those that still hold some, and what they are doing.
    pub held: Vec<(ProcessId, String)>,
    /// Whether the driver did not answer.
    pub hung: bool,
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
            release: None,
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
    /// Signals that were held back because the process had died since the members were read: its pid was
    /// free by then, or somebody else's.
    pub rejected: u64,
    /// Whether none of the tree can run again: its live counter is 0.
    pub extinct: bool,
    /// What makes the answer incomplete.
    pub losses: Vec<Loss>,
    /// From the beginning until it was extinct, or until the time was over.
    pub elapsed: Duration,
    /// Until the last of them was gone, its memory released; `None` when that was not seen.
    pub gone: Option<Duration>,
    /// GPU memory; `None` when nobody was to wait for it.
    pub release: Option<Release>,
}

impl KillReport {
    /// Whether nothing of the tree is left: no process, and no GPU memory that was waited for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let is_released = |release: &Release| release.held.is_empty() && !release.hung;
        self.extinct && self.survivors.is_empty() && self.release.as_ref().is_none_or(is_released)
    }
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
    kill_trees(tracker, root, &[], options).await
}

/// Kills the tree of `root` and those of `others`, all as one: they are condemned together, and the
/// proof is one. `others` are alive; one that has died meanwhile has nothing left to kill.
///
/// # Errors
/// As [`kill_tree`]; when one of them is refused, none is killed.
pub async fn kill_trees(
    tracker: Tracker,
    root: ProcessId,
    others: &[ProcessId],
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    let begun = Instant::now();
    let snapshot = tracker.snapshot()?;
    let guard = Guard::new(&snapshot);
    for root in [root].iter().chain(others) {
        guard.check(*root, options.force)?;
    }
    let watch = WatchOptions::default();
    let (mut session, start) = Session::start_all(tracker, root, others, &watch)?;
    session.ignore_gone();
    let mut killing = Killing::new(session, start, begun);
    for id in options.protected.iter().copied().chain([guard.own()]) {
        killing.session.spare(id)?;
        killing.members.retain(|member| member.id != id);
    }
    if options.dry_run {
        return Ok(killing.report(false));
    }
    // The driver is asked beside the killing, never before it.
    let releases = options.release.as_ref().map(follow_releases);
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
    if let Some(releases) = releases {
        killing.release = Some(killing.wait_until_released(releases).await);
    }
    Ok(killing.report(true))
}

fn follow_releases(options: &ReleaseOptions) -> Releases {
    let server = Server::new(&options.program, ANSWER_TIMEOUT);
    Releases::follow(server, options.timeout)
}

/// A kill under way.
struct Killing {
    session: Session,
    root: Process,
    members: Vec<Process>,
    begun: Instant,
    elapsed: Duration,
    gone: Option<Duration>,
    release: Option<Release>,
    force: Ended,
    dead: HashMap<ProcessId, (Process, Option<Death>)>,
    order: Vec<ProcessId>,
    /// When each began to die, ns since boot.
    died_ns: HashMap<ProcessId, u64>,
    /// Signals of the first kind that were held back.
    rejected: u64,
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
            release: None,
            force: Ended::default(),
            dead: HashMap::new(),
            order: Vec::new(),
            died_ns: HashMap::new(),
            rejected: 0,
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
            let outcome = strike::strike(self.session.watcher().tracker(), id, signal)?;
            self.rejected += u64::from(matches!(outcome, strike::Outcome::Stale));
        }
        while !self.is_extinct() && Instant::now() < until {
            self.follow(until).await?;
        }
        Ok(())
    }

    /// Kills until none can run, or until the deadline; whether the tree is extinct.
    async fn kill(&mut self, deadline: Instant) -> Result<bool, Error> {
        let mut force = Force::begin(self.session.watcher_mut())?;
        while !self.is_extinct() && Instant::now() < deadline {
            let due = force.advance(self.session.watcher()).await?;
            self.follow(deadline.min(due)).await?;
        }
        self.force = force.end();
        Ok(self.is_extinct())
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
                        self.died_ns
                            .extend(happening.at_ns.map(|at_ns| (id, at_ns)));
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
        // The last deaths are in the ring.
        while !self.ended && Instant::now() < until {
            self.follow(until).await?;
        }
        let mut struck = std::mem::take(&mut self.force.struck);
        let dead: Vec<_> = self
            .order
            .iter()
            .map(|id| (*id, struck.remove(id)))
            .collect();
        let all = async {
            for (id, pidfd) in dead {
                if !is_gone(id, pidfd).await {
                    return false;
                }
            }
            true
        };
        if self.ended && timeout_at(until, all).await == Ok(true) {
            self.gone = Some(self.begun.elapsed());
        }
        Ok(())
    }

    /// Waits until the driver accounts no GPU memory to the dead any more, each for as long as was
    /// allowed.
    async fn wait_until_released(&self, mut releases: Releases) -> Release {
        for id in &self.order {
            let at_ns = self.died_ns.get(id).copied();
            releases.died(*id, at_ns.unwrap_or_else(clock::boot_ns));
        }
        releases.close();
        let mut release = Release::default();
        while let Some(news) = releases.next().await {
            match news {
                News::Released { id, after_ns, .. } => {
                    let after = Duration::from_nanos(after_ns);
                    release.released.push((id, after));
                }
                News::StillHeld { id, state, .. } => release.held.push((id, state)),
                News::Hung => release.hung = true,
            }
        }
        release
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
                .map_or_else(|| self.describe(id), |known| (*known).clone());
            let reason = self.force.denied.get(&id).cloned();
            (process, reason.unwrap_or_else(|| survivor::reason(id.pid)))
        });
        let survivors = survivors.collect();
        let already_dying = self.force.already_dying.iter().map(|id| {
            let name = known.get(id).and_then(|process| process.name.clone());
            Who { id: *id, name }
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
            rejected: self.rejected + self.force.rejected,
            extinct: self.is_extinct(),
            losses: self.session.standing_losses().to_vec(),
            elapsed: self.elapsed,
            gone: self.gone,
            release: self.release,
            root: self.root,
            members: self.members,
        }
    }

    /// A member that is younger than the kill.
    fn describe(&self, id: ProcessId) -> Process {
        match self.session.watcher().tracker().record(&id) {
            Ok(Some(record)) => Process::of_record(id, &record),
            _ => Process::unknown(id),
        }
    }
}

/// Waits until a dead member is gone; false when that cannot be waited for. Without a descriptor from
/// when it lived: its pid may be free and taken again by now, which its start time tells.
async fn is_gone(id: ProcessId, pidfd: Option<OwnedFd>) -> bool {
    if let Some(pidfd) = pidfd {
        return pidfd::wait_until_gone(pidfd).await;
    }
    match pidfd::open(id.pid) {
        Ok(pidfd) if !proc::has_successor(id) => pidfd::wait_until_gone(pidfd).await,
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ESRCH),
    }
}

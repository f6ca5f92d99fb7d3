//! The exact kill: a watched tree of its own, condemned, killed with [`Force`], and followed until
//! its counter is 0, its members are gone, and their GPU memory is released.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::envoy::Envoy;
use super::force::{Ended, Force, is_any_alive};
use super::options::{KillOptions, ReleaseOptions};
use super::outcome::{Held, KillReport, Killed, Outcome, Release, Released};
use super::refuse::{Guard, KillRefusal};
use super::strike::{Strike, strike};
use super::suspects::{self, Suspects};
use crate::gpu::holders;
use crate::gpu::nvml::{ANSWER_TIMEOUT, Server};
use crate::gpu::release::{News, Releases};
use crate::kernel::{Error, LoadOptions, Tracker, WatchOptions, clock};
use crate::proc;
use crate::process::{Death, Process, Signal, Who, is_same_process};
use crate::session::{Session, Start, Update};
use crate::sys::pidfd;
use crate::sys::runtime::current_thread;
use crate::watch::What;

/// Pause between two looks at who lives, where nothing tells of deaths.
const LOOK: Duration = Duration::from_millis(20);

/// The time to wait for the killed to be gone, once none of them can run any more. Memory of very
/// large processes takes its time; the kill is proven before.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time to look who has a GPU open, before anybody is killed. Who is not reached is known as
/// a holder by the driver's answers alone.
const LOOK_FOR_HOLDERS: Duration = Duration::from_millis(20);

/// A reason why a kill could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KillError {
    /// It must not be done.
    #[error(transparent)]
    Refused(#[from] KillRefusal),
    /// The tracker failed.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The signal that should come first cannot be sent.
    #[error("{0} cannot come first; use SIGTERM or another signal below 32")]
    Unsendable(Signal),
    /// The thread that kills could not be prepared.
    #[error("cannot prepare the kill: {0}; raise the limits of threads and descriptors")]
    NotPrepared(#[source] io::Error),
}

/// Kills the tree of `root`, which may be a ghost: then its descendants die. Looks for suspects
/// before.
///
/// Dropping the future gives everything back: nothing stays condemned, and nothing attached.
/// Signals that were sent stay sent.
///
/// # Errors
/// [`KillError`]. Survivors are no error: the report has them.
pub async fn kill_tree(
    mut tracker: Tracker,
    root: ProcessId,
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    let begun = Instant::now();
    let snapshot = tracker.snapshot()?;
    let guard = Guard::new(&snapshot);
    let mut suspects = suspects::find(&mut tracker, &snapshot, &guard, root)?;
    let kills = options.suspects == Suspects::Kill;
    let doomed = suspects.iter().filter(|_| kills);
    let doomed: Vec<_> = doomed.map(|suspect| suspect.process.id).collect();
    drop(snapshot);
    let mut report = kill_guarded(tracker, root, &doomed, options, (&guard, begun)).await?;
    for suspect in &mut suspects {
        suspect.killed = report.has_killed(suspect.process.id);
    }
    // Without the tree some end by themselves.
    suspects.retain(|suspect| suspect.killed || proc::is_live(suspect.process.id));
    report.accepts_suspects = options.suspects == Suspects::Accept;
    report.suspects = suspects;
    Ok(report)
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
    let guard = Guard::new(&tracker.snapshot()?);
    kill_guarded(tracker, root, others, options, (&guard, begun)).await
}

/// Kills these trees, in a kill that began at this time, but for whom the guard refuses.
async fn kill_guarded(
    tracker: Tracker,
    root: ProcessId,
    others: &[ProcessId],
    options: &KillOptions,
    (guard, begun): (&Guard, Instant),
) -> Result<KillReport, KillError> {
    let first_signal = options.standard_signal().map_err(KillError::Unsendable)?;
    for root in [root].iter().chain(others) {
        guard.check(*root, options.force)?;
    }
    let watch = WatchOptions {
        is_for_kill: true,
        ..WatchOptions::default()
    };
    let (mut session, start) = Session::start_all(tracker, root, others, &watch)?;
    session.ignore_gone();
    let mut killing = Killing::new(session, start, begun);
    for id in options.protected.iter().copied().chain([guard.own()]) {
        killing.session.spare(id)?;
        killing.members.retain(|member| member.id != id);
    }
    killing.spare(&options.spared)?;
    if let Some(envoy) = options.envoy.as_deref() {
        killing.leave_out(envoy)?;
    }
    if options.dry_run {
        return Ok(killing.report(false));
    }
    // The driver is asked beside the killing, never before it. Its first answer can come when it
    // has taken back the memory of the first dead, so who has a device open is looked up before.
    killing.deaths.holders = killing.find_holders(options.release.as_ref());
    let releases = options.release.as_ref().map(follow_releases);
    if let Some(signal) = first_signal {
        killing
            .ask(signal, options.grace, options.envoy.as_deref())
            .await?;
    }
    let deadline = Instant::now() + options.timeout;
    let envoy = options.envoy.clone();
    let extinct = killing.is_extinct() || killing.kill(deadline, envoy).await?;
    killing.elapsed = begun.elapsed();
    if extinct {
        killing
            .wait_until_gone(Instant::now() + GONE_TIMEOUT)
            .await?;
    }
    if let Some(releases) = releases {
        killing.release = Some(killing.deaths.wait_until_released(releases).await);
    }
    Ok(killing.report(true))
}

/// Kills the tree of `id`, which may be exact to a clock tick, and those of `others`, on a thread
/// of its own: the kill raises the priority of its thread, and keeps it busy, so it is not for
/// threads that serve others.
///
/// # Errors
/// As [`kill_tree`].
pub(crate) async fn kill_on_a_thread(
    id: ProcessId,
    others: Vec<ProcessId>,
) -> Result<KillReport, KillError> {
    let is_meant = move |root| is_same_process(root, id) && proc::owns_pid(id);
    let kill = move || kill_blocking(id.pid, is_meant, &others, |_| KillOptions::default());
    let done = tokio::task::spawn_blocking(kill).await;
    done.unwrap_or_else(|error| Err(KillError::NotPrepared(io::Error::other(error))))
}

/// Kills the tree of the process that has this pid now, if it is the one that is meant, and those
/// of `others`, on this thread, without a look for suspects. `options` are made for its exact
/// identity.
///
/// # Errors
/// As [`kill_tree`].
pub(super) fn kill_blocking(
    pid: u32,
    is_meant: impl FnOnce(ProcessId) -> bool,
    others: &[ProcessId],
    options: impl FnOnce(ProcessId) -> KillOptions,
) -> Result<KillReport, KillError> {
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let root = tracker.snapshot()?.live(pid).map(|(id, _)| *id);
    let Some(root) = root.filter(|root| is_meant(*root)) else {
        return Err(Error::NoProcess(pid.to_string()).into());
    };
    let runtime = current_thread().map_err(KillError::NotPrepared)?;
    runtime.block_on(kill_trees(tracker, root, others, &options(root)))
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
    deaths: Deaths,
    /// Signals of the first kind that were held back.
    rejected: u64,
    /// Members that were left out because whoever has asked may not end them.
    others: usize,
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
            deaths: Deaths::default(),
            rejected: 0,
            others: 0,
        }
    }

    /// Finds the members that have a GPU open, as far as there is time.
    fn find_holders(&self, options: Option<&ReleaseOptions>) -> HashSet<ProcessId> {
        let Some(options) = options else {
            return HashSet::new();
        };
        let until = Instant::now() + LOOK_FOR_HOLDERS;
        let members = self.members.iter().map(|member| member.id);
        holders::openers(members, &options.files, until.into_std())
    }

    /// Takes these processes out of the tree, with what they have created.
    fn spare(&mut self, tops: &[ProcessId]) -> Result<(), Error> {
        if tops.is_empty() {
            return Ok(());
        }
        // Some are known from `/proc`, to a clock tick.
        let members = self.session.watcher().live_members()?.into_iter();
        let is_meant = |id: &ProcessId| tops.iter().any(|one| is_same_process(*one, *id));
        let mut spared: HashSet<ProcessId> = members.filter(is_meant).collect();
        for id in &spared {
            self.session.spare(*id)?;
        }
        // What they created before they were taken out is a member still. Each round finds what
        // was created by those of the round before; from then on nothing more comes.
        loop {
            let mut found = false;
            for id in self.session.watcher().live_members()? {
                let record = self.session.watcher().tracker().record(&id)?;
                if record.is_some_and(|record| spared.contains(&record.creator)) {
                    self.session.spare(id)?;
                    spared.insert(id);
                    found = true;
                }
            }
            if !found {
                break;
            }
        }
        self.members.retain(|member| !spared.contains(&member.id));
        Ok(())
    }

    fn is_extinct(&self) -> bool {
        self.session.watcher().counters().live == 0
    }

    /// Leaves out of the tree whom the envoy may not end, and what those create from now on.
    fn leave_out(&mut self, envoy: &dyn Envoy) -> Result<(), Error> {
        for id in self.session.watcher().live_members()? {
            let tracker = self.session.watcher().tracker();
            if matches!(strike(tracker, id, None, Some(envoy))?, Strike::Foreign) {
                self.session.spare(id)?;
                self.members.retain(|member| member.id != id);
                self.others += 1;
            }
        }
        Ok(())
    }

    /// Asks every member to end, and waits for the grace or the end of all.
    async fn ask(
        &mut self,
        signal: nix::sys::signal::Signal,
        grace: Duration,
        envoy: Option<&dyn Envoy>,
    ) -> Result<(), Error> {
        let until = Instant::now() + grace;
        for id in self.session.watcher().live_members()? {
            let strike = strike(self.session.watcher().tracker(), id, Some(signal), envoy)?;
            self.rejected += u64::from(matches!(strike, Strike::Stale));
        }
        while !self.is_extinct() && Instant::now() < until {
            if !self.session.is_over() {
                self.follow(until).await?;
                continue;
            }
            // The tracker was switched off: nothing tells of deaths any more.
            if !is_any_alive(self.session.watcher())? {
                break;
            }
            sleep_until(until.min(Instant::now() + LOOK)).await;
        }
        Ok(())
    }

    /// Kills until none can run, or until the deadline; returns whether the tree is extinct.
    async fn kill(
        &mut self,
        deadline: Instant,
        envoy: Option<Arc<dyn Envoy>>,
    ) -> Result<bool, Error> {
        let mut force = Force::begin_by(self.session.watcher_mut(), envoy)?;
        let deaths = &mut self.deaths;
        let extinct = force
            .drive(&mut self.session, deadline, |update| deaths.note(update))
            .await?;
        self.force = force.end();
        Ok(extinct)
    }

    /// Takes in what happens until `until`, or until something has happened.
    async fn follow(&mut self, until: Instant) -> Result<(), Error> {
        if let Ok(updates) = timeout_at(until, self.session.next()).await {
            updates?
                .into_iter()
                .for_each(|update| self.deaths.note(update));
        }
        Ok(())
    }

    /// Waits until memory and files of all are released.
    async fn wait_until_gone(&mut self, until: Instant) -> Result<(), Error> {
        // The last deaths are in the ring.
        while !self.deaths.are_all && Instant::now() < until {
            self.follow(until).await?;
        }
        let mut struck = std::mem::take(&mut self.force.struck);
        let dead = self.deaths.order.iter();
        let dead: Vec<_> = dead.map(|id| (*id, struck.remove(id))).collect();
        let all = async {
            for (id, pidfd) in dead {
                if !is_gone(id, pidfd).await {
                    return false;
                }
            }
            true
        };
        if self.deaths.are_all && timeout_at(until, all).await == Ok(true) {
            self.gone = Some(self.begun.elapsed());
        }
        Ok(())
    }

    fn report(self, acted: bool) -> KillReport {
        let watcher = self.session.watcher();
        let survivors = if acted {
            self.force.survivors(watcher).unwrap_or_default()
        } else {
            Vec::new()
        };
        let members = self.members.iter();
        let names: HashMap<_, _> = members.map(|member| (member.id, &member.name)).collect();
        let already_dying = self.force.already_dying.iter().map(|id| Who {
            id: *id,
            name: names.get(id).and_then(|name| (*name).clone()),
        });
        KillReport {
            outcome: Outcome {
                already_dying: already_dying.collect(),
                survivors,
                killed: self.deaths.killed(),
            },
            rejected: self.rejected + self.force.rejected,
            others: self.others + self.force.spared,
            extinct: watcher.counters().live == 0,
            losses: self.session.standing_losses().to_vec(),
            suspects: Vec::new(),
            accepts_suspects: false,
            elapsed: self.elapsed,
            gone: self.gone,
            release: self.release,
            root: self.root,
            members: self.members,
        }
    }
}

/// The members that have died so far.
#[derive(Default)]
struct Deaths {
    dead: HashMap<ProcessId, Dead>,
    order: Vec<ProcessId>,
    /// Those who had a GPU open when the kill began.
    holders: HashSet<ProcessId>,
    /// True if no more will come.
    are_all: bool,
}

struct Dead {
    process: Process,
    death: Option<Death>,
    /// The time when it began to die, in ns since boot.
    at_ns: Option<u64>,
}

impl Deaths {
    /// Takes in what the session reports.
    fn note(&mut self, update: Update) {
        match update {
            Update::Happening(happening) => {
                if let What::Exit { death, .. } = happening.what {
                    let id = happening.process.id;
                    self.order.push(id);
                    let dead = Dead {
                        process: happening.process,
                        death,
                        at_ns: happening.at_ns,
                    };
                    self.dead.insert(id, dead);
                }
            }
            Update::End => self.are_all = true,
            Update::Lost { .. } | Update::Extinct => {}
        }
    }

    /// Waits until the driver accounts no GPU memory to the dead any more, each for as long as was
    /// allowed.
    async fn wait_until_released(&self, mut releases: Releases) -> Release {
        for id in &self.order {
            let at_ns = self.dead.get(id).and_then(|dead| dead.at_ns);
            let at_ns = at_ns.unwrap_or_else(clock::boot_ns);
            if self.holders.contains(id) {
                releases.holder_died(*id, at_ns);
            } else {
                releases.died(*id, at_ns);
            }
        }
        releases.close();
        let mut release = Release::default();
        while let Some(news) = releases.next().await {
            match news {
                News::Released { id, after_ns, .. } => {
                    let after = Duration::from_nanos(after_ns);
                    release.released.push(Released { id, after });
                }
                News::StillHeld { id, state, .. } => release.held.push(Held { id, state }),
                News::Hung => release.hung = true,
                // Whoever kills what holds no GPU need not care for a broken driver.
                News::Failed(why) if self.holders.is_empty() => {
                    log::info!("nobody of the tree had a GPU open, and the driver fails: {why}");
                }
                News::Failed(why) => release.failed = Some(why),
            }
        }
        release
    }

    /// Returns them in the order in which they died.
    fn killed(mut self) -> Vec<Killed> {
        let order = std::mem::take(&mut self.order).into_iter();
        let dead = order.filter_map(|id| self.dead.remove(&id));
        dead.map(|dead| Killed::new(dead.process, dead.death))
            .collect()
    }
}

/// Waits until a dead member is gone; returns false when that cannot be waited for. Without a
/// descriptor from when it lived: its pid may be free and taken again by now, which its start time
/// tells.
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

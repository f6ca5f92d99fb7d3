//! SIGKILL to every member of a condemned tree: the closer, and beside it the killing passes over
//! the membership map (I4). The one loop of every kill with eBPF: what happens to the tree
//! meanwhile is handed on.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lifemon_ebpf::{CONDEMNED, ProcessId, condemned_by};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::envoy::Envoy;
use super::outcome::Survivor;
use super::strike::{Strike, strike};
use super::survivor;
use crate::kernel::{Closer, Error, Watcher};
use crate::proc;
use crate::process::Process;
use crate::session::{Session, Update};
use crate::sys::descriptor::make_room;
use crate::sys::priority::RealTime;

/// Pause after a pass that found somebody; doubled by each one that did not, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// The longest pause: a process that is left by then has had SIGKILL and is held by something else.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// Descriptors that are open for other reasons.
const OTHER_DESCRIPTORS: usize = 128;

/// A tree that is being killed. Dropping it detaches the closer; the tree stays condemned for as
/// long as it is watched.
#[derive(Debug)]
pub(crate) struct Force {
    /// Whoever needs no signal any more.
    done: HashSet<ProcessId>,
    /// Descriptors of those who were sent SIGKILL, as far as there was room; `None` where they are
    /// not kept.
    struck: Option<HashMap<ProcessId, OwnedFd>>,
    already_dying: Vec<ProcessId>,
    denied: HashMap<ProcessId, String>,
    rejected: u64,
    /// Who sends the signals, if not this process.
    envoy: Option<Arc<dyn Envoy>>,
    /// Members that the envoy may not end, to be left out of the tree.
    foreign: Vec<ProcessId>,
    /// How many were left out.
    spared: usize,
    /// Forks of the tree before the last pass read the members.
    forks: Option<u64>,
    pause: Duration,
    due: Instant,
    attaching: Option<JoinHandle<Result<Closer, Error>>>,
    closer: Option<Closer>,
    /// True if the session has nothing more to report.
    is_unreported: bool,
    _priority: RealTime,
}

impl Force {
    /// Condemns the tree and begins to attach the closer: beside the first passes, because on an
    /// overloaded host that can take seconds.
    ///
    /// # Errors
    /// When the tree cannot be condemned. Needs a tokio runtime.
    pub(crate) fn begin(watcher: &mut Watcher) -> Result<Self, Error> {
        Self::begin_by(watcher, None)
    }

    /// Does the same in the name of whoever the envoy is of.
    ///
    /// # Errors
    /// As [`Force::begin`].
    pub(crate) fn begin_by(
        watcher: &mut Watcher,
        envoy: Option<Arc<dyn Envoy>>,
    ) -> Result<Self, Error> {
        let priority = RealTime::begin();
        let condemnation = match &envoy {
            None => Some(CONDEMNED),
            // Without a user: whom the closer met would not be asked for.
            Some(envoy) => envoy.uid().map(condemned_by),
        };
        let attaching = match condemnation {
            Some(condemnation) => {
                watcher.condemn(condemnation)?;
                closer(watcher)?
            }
            None => None,
        };
        let live = usize::try_from(watcher.counters().live).unwrap_or(usize::MAX);
        make_room(live.saturating_add(OTHER_DESCRIPTORS));
        let attaching = attaching.map(|mut closer| {
            tokio::task::spawn_blocking(move || closer.attach().map(|()| closer))
        });
        Ok(Self {
            done: HashSet::new(),
            struck: Some(HashMap::new()),
            already_dying: Vec::new(),
            denied: HashMap::new(),
            rejected: 0,
            envoy,
            foreign: Vec::new(),
            spared: 0,
            forks: None,
            pause: PAUSE_MIN,
            due: Instant::now(),
            attaching,
            closer: None,
            is_unreported: false,
            _priority: priority,
        })
    }

    /// Keeps no descriptors: for those who learn otherwise who is gone, or need them themselves.
    pub(crate) fn without_descriptors(mut self) -> Self {
        self.struck = None;
        self
    }

    /// Kills until no member can run, or until `until`; hands on what the session reports
    /// meanwhile. Returns whether the tree is extinct.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) async fn drive(
        &mut self,
        session: &mut Session,
        until: Instant,
        mut on_update: impl FnMut(Update),
    ) -> Result<bool, Error> {
        while !is_extinct(session) && Instant::now() < until {
            if session.is_over() && !is_any_alive(session.watcher())? {
                break;
            }
            let Ok(updates) = timeout_at(until, self.next(session)).await else {
                break;
            };
            updates?.into_iter().for_each(&mut on_update);
        }
        Ok(is_extinct(session))
    }

    /// Returns the next updates of the session; until they come, makes the passes that are due. May
    /// be dropped and called again.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) async fn next(&mut self, session: &mut Session) -> Result<Vec<Update>, Error> {
        self.is_unreported |= session.is_over();
        while !is_extinct(session) {
            let due = self.advance(session.watcher()).await?;
            if !self.foreign.is_empty() {
                for id in std::mem::take(&mut self.foreign) {
                    session.spare(id)?;
                    self.spared += 1;
                }
                continue;
            }
            if self.is_unreported {
                sleep_until(due).await;
            } else if let Ok(updates) = timeout_at(due, session.next()).await {
                let updates = updates?;
                // The tracker was switched off. Whoever is known can still be killed.
                let is_end = updates.iter().any(|update| matches!(update, Update::End));
                self.is_unreported = is_end;
                return Ok(updates);
            }
        }
        session.next().await
    }

    /// Makes a pass if one is due; returns when to call this again.
    ///
    /// A new member can only come by a fork of a member, and is in the map before it is counted: so
    /// as long as the count has not changed since the last reading, that was complete. A pass now
    /// and then all the same finds those that were labelled late, after a loss.
    async fn advance(&mut self, watcher: &Watcher) -> Result<Instant, Error> {
        self.settle_closer().await;
        // Before the reading, or a fork between the two would be missed.
        let forks = watcher.counters().forks;
        if self.forks != Some(forks) || Instant::now() >= self.due {
            self.pause = if self.pass(watcher)? {
                PAUSE_MIN
            } else {
                PAUSE_MAX.min(self.pause * 2)
            };
            self.forks = Some(forks);
            self.due = Instant::now() + self.pause;
        }
        Ok(self.due)
    }

    /// Takes over the closer once it is attached. Nothing is lost when this is dropped.
    async fn settle_closer(&mut self) {
        let Some(handle) = self
            .attaching
            .as_mut()
            .filter(|handle| handle.is_finished())
        else {
            return;
        };
        let attached = handle.await;
        self.attaching = None;
        match attached {
            Ok(Ok(closer)) => self.closer = Some(closer),
            // The passes go on alone; what forks faster than they run shows as survivors.
            Ok(Err(error)) => log::warn!("killing without the closer: {error}"),
            Err(error) => log::warn!("killing without the closer: {error}"),
        }
    }

    /// Sends SIGKILL to every living member that has not had it yet; returns whether there was one.
    fn pass(&mut self, watcher: &Watcher) -> Result<bool, Error> {
        let mut found = false;
        for id in watcher.live_members()? {
            if self.done.contains(&id) {
                self.doubt(id);
                continue;
            }
            let envoy = self.envoy.clone();
            let strike = |id| {
                let kill = Some(Signal::SIGKILL);
                strike(watcher.tracker(), id, kill, envoy.as_deref())
            };
            let mut outcome = strike(id)?;
            if matches!(outcome, Strike::NoRoom) {
                // They are opened again, one by one, when it is time to wait for them.
                self.struck = self.struck.take().map(|_| HashMap::new());
                outcome = strike(id)?;
            }
            found |= self.note(id, outcome);
        }
        Ok(found)
    }

    /// Notes a member that is still one although its record was not found to be live: it never had
    /// a record, or is in the middle of its death. Nothing proves who it is, so only the closer can
    /// end it.
    fn doubt(&mut self, id: ProcessId) {
        if let Some(index) = self.already_dying.iter().position(|dying| *dying == id) {
            let why =
                "it has no record, so nothing proves who has its pid: the lineage map was full";
            self.denied.insert(id, why.to_owned());
            self.already_dying.swap_remove(index);
        }
    }

    /// Notes what came of a signal; returns whether that was anything new.
    fn note(&mut self, id: ProcessId, outcome: Strike) -> bool {
        match outcome {
            Strike::Sent(pidfd) => {
                if let Some(struck) = &mut self.struck {
                    struck.insert(id, pidfd);
                }
            }
            Strike::Stale => {
                self.rejected += 1;
                self.already_dying.push(id);
            }
            Strike::Dying => self.already_dying.push(id),
            Strike::Foreign => self.foreign.push(id),
            Strike::NoRoom => {
                let why = "no descriptor is left to signal it: raise the limit of open files";
                return self.denied.insert(id, why.to_owned()).is_none();
            }
            Strike::Denied(why) => return self.denied.insert(id, why).is_none(),
        }
        self.denied.remove(&id);
        self.done.insert(id);
        true
    }

    /// Ends it; returns what it came to.
    pub(super) fn end(self) -> Ended {
        Ended {
            struck: self.struck.unwrap_or_default(),
            already_dying: self.already_dying,
            denied: self.denied,
            rejected: self.rejected,
            spared: self.spared,
        }
    }
}

fn is_extinct(session: &Session) -> bool {
    session.watcher().counters().live == 0
}

/// Kills everything of a watched tree within `limit`, for an owner that needs its descriptors
/// itself; returns those who are left.
///
/// # Errors
/// When a map cannot be read or written.
pub(crate) async fn kill_watched(
    session: &mut Session,
    limit: Duration,
) -> Result<Vec<Survivor>, Error> {
    let mut force = Force::begin(session.watcher_mut())?.without_descriptors();
    if force.drive(session, Instant::now() + limit, drop).await? {
        return Ok(Vec::new());
    }
    force.end().survivors(session.watcher())
}

/// The result of the use of force.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) struck: HashMap<ProcessId, OwnedFd>,
    pub(super) already_dying: Vec<ProcessId>,
    /// The reasons why members could not be signalled.
    denied: HashMap<ProcessId, String>,
    pub(super) rejected: u64,
    /// Members that were left out because the envoy may not end them.
    pub(super) spared: usize,
}

impl Ended {
    /// Returns the members that are still alive, each with the reason.
    pub(super) fn survivors(&self, watcher: &Watcher) -> Result<Vec<Survivor>, Error> {
        let survivor = |id: ProcessId| {
            let process = match watcher.tracker().record(&id) {
                Ok(Some(record)) => Process::of_record(id, &record),
                _ => Process::unknown(id),
            };
            let denied = self.denied.get(&id).cloned();
            Survivor::new(
                process,
                Some(denied.unwrap_or_else(|| survivor::reason(id))),
            )
        };
        let mut members = watcher.live_members()?;
        if watcher.is_cut_off() {
            // Nobody counts the dead any more.
            members.retain(|id| proc::is_live(*id));
        }
        Ok(members.into_iter().map(survivor).collect())
    }
}

/// Returns the closer; `None` where the tracker was switched off meanwhile: the passes go on alone.
fn closer(watcher: &mut Watcher) -> Result<Option<Closer>, Error> {
    match watcher.closer() {
        Ok(closer) => Ok(Some(closer)),
        Err(_) if watcher.is_cut_off() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether any member lives, by `/proc`: for whoever hears of no more deaths.
///
/// # Errors
/// When the members cannot be read.
pub(super) fn is_any_alive(watcher: &Watcher) -> Result<bool, Error> {
    Ok(watcher.live_members()?.into_iter().any(proc::is_live))
}

//! SIGKILL to every member of a condemned tree: the closer, and beside it the killing passes over the
//! membership map (I4). Whoever uses this goes on to follow the tree's events meanwhile.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::strike::{self, Outcome};
use crate::kernel::{Closer, Error, Watcher};
use crate::sys::descriptor::make_room;
use crate::sys::priority::RealTime;

/// Pause after a pass that found somebody; doubled by each one that did not, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Who is left by then has had SIGKILL and is held by something else.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// Descriptors that are open for other reasons.
const OTHER_DESCRIPTORS: usize = 128;

/// A tree that is being killed. Dropping it detaches the closer; the tree stays condemned for as long as
/// it is watched.
#[derive(Debug)]
pub(crate) struct Force {
    /// Whoever needs no signal any more.
    done: HashSet<ProcessId>,
    /// Descriptors of those who were sent SIGKILL, as far as there was room.
    struck: HashMap<ProcessId, OwnedFd>,
    already_dying: Vec<ProcessId>,
    denied: HashMap<ProcessId, String>,
    rejected: u64,
    /// Forks of the tree before the last pass read the members.
    forks: Option<u64>,
    pause: Duration,
    due: Instant,
    attaching: Option<JoinHandle<Result<Closer, Error>>>,
    closer: Option<Closer>,
    _priority: RealTime,
}

impl Force {
    /// Condemns the tree and begins to attach the closer: beside the first passes, because on an
    /// overloaded host that can take seconds.
    ///
    /// # Errors
    /// When the tree cannot be condemned. Needs a tokio runtime.
    pub(crate) fn begin(watcher: &mut Watcher) -> Result<Self, Error> {
        let priority = RealTime::begin();
        watcher.condemn()?;
        let mut closer = watcher.closer()?;
        let live = usize::try_from(watcher.counters().live).unwrap_or(usize::MAX);
        make_room(live.saturating_add(OTHER_DESCRIPTORS));
        let attach = move || closer.attach().map(|()| closer);
        Ok(Self {
            done: HashSet::new(),
            struck: HashMap::new(),
            already_dying: Vec::new(),
            denied: HashMap::new(),
            rejected: 0,
            forks: None,
            pause: PAUSE_MIN,
            due: Instant::now(),
            attaching: Some(tokio::task::spawn_blocking(attach)),
            closer: None,
            _priority: priority,
        })
    }

    /// Makes a pass if one is due; when to call this again.
    ///
    /// A new member can only come by a fork of a member, and is in the map before it is counted: so as
    /// long as the count has not changed since the last reading, that was complete. A pass now and
    /// then all the same finds those that were labelled late, after a loss.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) async fn advance(&mut self, watcher: &Watcher) -> Result<Instant, Error> {
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

    async fn settle_closer(&mut self) {
        let finished = self.attaching.take_if(|handle| handle.is_finished());
        let Some(handle) = finished else { return };
        match handle.await {
            Ok(Ok(closer)) => self.closer = Some(closer),
            // The passes go on alone; what forks faster than they run shows as survivors.
            Ok(Err(error)) => log::warn!("killing without the closer: {error}"),
            Err(error) => log::warn!("killing without the closer: {error}"),
        }
    }

    /// Sends SIGKILL to every living member that has not had it yet; whether there was one.
    fn pass(&mut self, watcher: &Watcher) -> Result<bool, Error> {
        let mut found = false;
        for id in watcher.live_members()? {
            if self.done.contains(&id) {
                self.doubt(id);
                continue;
            }
            let mut outcome = strike::strike(watcher.tracker(), id, Signal::SIGKILL)?;
            if matches!(outcome, Outcome::NoRoom) {
                // They are opened again, one by one, when it is time to wait for them.
                self.struck = HashMap::new();
                outcome = strike::strike(watcher.tracker(), id, Signal::SIGKILL)?;
            }
            found |= self.note(id, outcome);
        }
        Ok(found)
    }

    /// A member that is still one although its record was not found to be live: it never had a record, or
    /// is in the middle of its death. Nothing proves who it is, so only the closer can end it.
    fn doubt(&mut self, id: ProcessId) {
        if let Some(index) = self.already_dying.iter().position(|dying| *dying == id)
            && !self.struck.contains_key(&id)
        {
            let why =
                "it has no record, so nothing proves who has its pid: the lineage map was full";
            self.denied.insert(id, why.to_owned());
            self.already_dying.swap_remove(index);
        }
    }

    /// Remembers what came of a signal; whether that was anything new.
    fn note(&mut self, id: ProcessId, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Sent(pidfd) => {
                self.struck.insert(id, pidfd);
            }
            Outcome::Stale => {
                self.rejected += 1;
                self.already_dying.push(id);
            }
            Outcome::Dying => self.already_dying.push(id),
            Outcome::NoRoom => {
                let why = "no descriptor is left to signal it: raise the limit of open files";
                return self.denied.insert(id, why.to_owned()).is_none();
            }
            Outcome::Denied(why) => return self.denied.insert(id, why).is_none(),
        }
        self.denied.remove(&id);
        self.done.insert(id);
        true
    }

    /// Ends it; what it came to.
    pub(super) fn end(self) -> Ended {
        Ended {
            struck: self.struck,
            already_dying: self.already_dying,
            denied: self.denied,
            rejected: self.rejected,
        }
    }

    /// Lets go of the descriptors, for those who learn otherwise who is gone.
    pub(crate) fn let_go(&mut self) {
        self.struck = HashMap::new();
    }
}

/// What the use of force came to.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) struck: HashMap<ProcessId, OwnedFd>,
    pub(super) already_dying: Vec<ProcessId>,
    /// Why a member could not be signalled.
    pub(super) denied: HashMap<ProcessId, String>,
    pub(super) rejected: u64,
}

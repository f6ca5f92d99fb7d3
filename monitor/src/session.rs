//! A watched tree, live: the kernel's events and the pidfds of the dying on one side, the pure
//! model on the other. What `lifemon attach` prints comes from here.
//!
//! Stages of a death: `exit` is the kernel's event, as soon as no thread can run user code again;
//! `gone` is the pidfd, when memory and files are released and the children have a new parent:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/fs/pidfs.c?h=v6.12.118#n112>.

mod missed;
mod start;
mod wakeups;

pub use start::{Ghost, LostAtStart, Start};

use std::time::Duration;

use lifemon_ebpf::{Event, ProcessId, SENT_BY_KERNEL};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::kernel::{Error, Tracker, WatchOptions, Watcher, clock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Died, Process};
use crate::sys::pidfd;
use crate::sys::poll::{OwnsDescriptor, readable};
use crate::watch::{Happening, Known, Watch, What};

use start::describe;
use wakeups::WakeupBudget;

/// Interval at which the ring is drained when no urgent event comes.
const TICK: Duration = Duration::from_millis(40);

/// Events taken from the ring before they are handed on.
const DRAIN_LIMIT: usize = 4_096;

/// Interval at which the ring is looked at while no wakeups may come.
const POLL: Duration = Duration::from_millis(1);

/// Longest time to wait, after the tree is extinct, until the last members are gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);

/// Something to report.
#[derive(Debug, Clone)]
pub enum Update {
    /// Something happened to a member.
    Happening(Box<Happening>),
    /// Something was lost, or what was lost has been recovered.
    Lost {
        /// The kind of loss.
        loss: Loss,
        /// The amount since it was last reported.
        count: u64,
        /// True if the comparison with the kernel's map has recovered it.
        recovered: bool,
        /// True if answers are complete from here on.
        complete: bool,
    },
    /// No member can run again. The last `gone` may follow.
    Extinct,
    /// Nothing more will come.
    End,
}

/// The losses when they were last reported, as the counters had them.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    events: u64,
    members: u64,
    records: u64,
    missed_forks: u64,
    missed_exits: u64,
    failed_deletes: u64,
}

impl Seen {
    /// Reads what a tracker has lost before a watch of it begins.
    fn of(tracker: &Tracker) -> Self {
        Self {
            records: tracker.host_counters().lost_records,
            missed_forks: tracker.missed_forks(),
            missed_exits: tracker.missed_exits(),
            failed_deletes: tracker.failed_deletes(),
            ..Self::default()
        }
    }
}

/// A watched tree.
#[derive(Debug)]
pub struct Session {
    watcher: AsyncFd<Watcher>,
    watch: Watch,
    dying: JoinSet<ProcessId>,
    /// Dying members for which there was no descriptor left: asked on every tick.
    polled: Vec<ProcessId>,
    /// Members that have died since the last update was handed out: not followed yet, because
    /// saying so comes first.
    unfollowed: Vec<ProcessId>,
    tick: tokio::time::Interval,
    /// Until then members may have died unseen.
    settling_until: Option<Instant>,
    has_missed_forks: bool,
    wakeups: WakeupBudget,
    seen: Seen,
    standing: Vec<Loss>,
    ready: Vec<Update>,
    extinct_since: Option<Instant>,
    ended: bool,
    ignores_gone: bool,
}

impl Session {
    /// Begins to watch the tree of `root`.
    ///
    /// # Errors
    /// Whatever [`Tracker::watch`] fails with, and when the maps cannot be read. Needs a tokio
    /// runtime with I/O and time.
    pub fn start(
        tracker: Tracker,
        root: ProcessId,
        options: &WatchOptions,
    ) -> Result<(Self, Start), Error> {
        Self::start_all(tracker, root, &[], options)
    }

    /// Begins to watch the tree of `root` and those of others, which are alive, as one.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_all(
        tracker: Tracker,
        root: ProcessId,
        others: &[ProcessId],
        options: &WatchOptions,
    ) -> Result<(Self, Start), Error> {
        let seen = Seen::of(&tracker);
        Self::of(tracker.watch(root, others, options)?, seen)
    }

    /// Begins to watch these trees as one, from the first whose root has a record on; `None` where
    /// none has one.
    ///
    /// # Errors
    /// As [`Session::start`], but for [`Error::NoProcess`].
    pub(crate) fn start_any(
        tracker: Tracker,
        roots: &[ProcessId],
        options: &WatchOptions,
    ) -> Result<Option<(Self, Start)>, Error> {
        let seen = Seen::of(&tracker);
        let watcher = tracker.watch_any(roots, options)?;
        watcher.map(|watcher| Self::of(watcher, seen)).transpose()
    }

    /// Makes one of a watch that has begun.
    fn of(mut watcher: Watcher, seen: Seen) -> Result<(Self, Start), Error> {
        let members = watcher.live_members()?;
        let snapshot = watcher.take_snapshot()?;
        let (root, since_ns) = (watcher.root(), snapshot.since_ns);
        let (others, records) = (watcher.others(), &snapshot.records);
        let start = describe(root, others, &members, records, since_ns, &watcher);
        let ghosts = start
            .ghosts
            .iter()
            .map(|ghost| ghost.process.clone())
            .collect();
        let watch = Watch::new(root, start.members.clone(), ghosts);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = Self {
            watcher: readable(watcher).map_err(Error::Map)?,
            watch,
            dying: JoinSet::new(),
            polled: Vec::new(),
            unfollowed: Vec::new(),
            tick,
            settling_until: None,
            has_missed_forks: false,
            wakeups: WakeupBudget::new(),
            seen,
            standing: start.losses.iter().map(|lost| lost.loss).collect(),
            ready: Vec::new(),
            extinct_since: None,
            ended: false,
            ignores_gone: false,
        };
        Ok((session, start))
    }

    /// Returns the model.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Describes the tree as the updates so far have left it: what it does not show is in one that
    /// follows.
    ///
    /// # Errors
    /// When the maps cannot be read.
    #[cfg(feature = "agent")]
    pub(crate) fn now(&self) -> Result<Start, Error> {
        let members = self.watch.members();
        let ids: Vec<_> = members.iter().map(|member| member.id).collect();
        let snapshot = self.watcher().tracker().snapshot()?;
        let (root, since_ns) = (self.watch.root(), snapshot.since_ns);
        let records = &snapshot.records;
        let mut start = describe(root, &[], &ids, records, since_ns, self.watcher());
        // Who has died since has its `exit` to come, and is a member until then.
        start
            .ghosts
            .retain(|ghost| !ids.contains(&ghost.process.id));
        start.members = members;
        let lost = |loss: &Loss| LostAtStart {
            loss: *loss,
            count: 0,
        };
        start.losses = self.standing.iter().map(lost).collect();
        Ok(start)
    }

    /// Returns the kernel's side.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        self.watcher.get_ref()
    }

    /// Returns the kernel's side, to open its debug log.
    pub fn watcher_mut(&mut self) -> &mut Watcher {
        self.watcher.get_mut()
    }

    /// Takes one process out of the tree, for itself and for what it creates from now on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn spare(&mut self, id: ProcessId) -> Result<(), Error> {
        self.watcher.get_mut().spare(id)?;
        self.watch.forget(id);
        Ok(())
    }

    /// Stops at the exit of each member: for those who wait by themselves until it is gone.
    pub(crate) fn ignore_gone(&mut self) {
        self.ignores_gone = true;
    }

    /// Returns what makes answers incomplete now.
    #[must_use]
    pub fn standing_losses(&self) -> &[Loss] {
        &self.standing
    }

    /// Returns whether no more updates will come but [`Update::End`], at once and each time.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// Waits for the next updates, at least one. Safe to drop and call again.
    ///
    /// # Errors
    /// When the maps cannot be read any more.
    pub async fn next(&mut self) -> Result<Vec<Update>, Error> {
        loop {
            if !self.ready.is_empty() {
                return Ok(std::mem::take(&mut self.ready));
            }
            if self.ended {
                return Ok(vec![Update::End]);
            }
            for id in std::mem::take(&mut self.unfollowed) {
                self.follow(id);
            }
            // Ask, drain, sleep: whatever comes after the drain wakes us.
            let may_wake = self.wakeups.take();
            if may_wake {
                self.watcher.get_ref().ask_for_wakeup();
            }
            if self.drain()? || self.check_extinct() {
                continue;
            }
            tokio::select! {
                ready = self.watcher.readable() => ready.map_err(Error::Map)?.clear_ready(),
                Some(Ok(id)) = self.dying.join_next() => self.report_gone(id),
                () = sleep(POLL), if !may_wake => {}
                _ = self.tick.tick() => self.on_tick()?,
            }
        }
    }

    /// Returns what has happened until now and was not returned yet: for whoever stops listening.
    /// What waits for the next tick is in the ring, without a wakeup.
    ///
    /// # Errors
    /// As [`Session::next`].
    pub(crate) fn rest(&mut self) -> Result<Vec<Update>, Error> {
        let now_ns = clock::boot_ns();
        loop {
            let mut events = Vec::new();
            let is_empty = self.watcher.get_mut().drain(&mut events, DRAIN_LIMIT);
            for event in &events {
                self.handle(event)?;
            }
            let is_later = events.last().is_some_and(|event| event.time_ns > now_ns);
            if is_empty || is_later {
                break;
            }
        }
        // What was lost is reported, and not recovered any more: that can wait for a lock.
        let [members, events] = self.unseen_losses();
        for (loss, count) in [(Loss::MembersFull, members), (Loss::RingFull, events)] {
            if count > 0 {
                self.lose(loss, count, false);
            }
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// Handles what is in the ring; whether there was anything.
    fn drain(&mut self) -> Result<bool, Error> {
        let mut events = Vec::new();
        self.watcher.get_mut().drain(&mut events, DRAIN_LIMIT);
        for event in &events {
            self.handle(event)?;
        }
        self.check_losses()?;
        Ok(!events.is_empty() || !self.ready.is_empty())
    }

    fn handle(&mut self, event: &Event) -> Result<(), Error> {
        let mut event = *event;
        self.explain_late(&mut event)?;
        if let Some(happening) = self.watch.apply(&event) {
            self.report(happening);
        }
        Ok(())
    }

    /// Adds that it was the out-of-memory killer. The kernel sends SIGKILL before it marks a
    /// victim, and since 6.16 the exit event can overtake the mark. Then the mark is in the
    /// record's place by now.
    fn explain_late(&self, event: &mut Event) -> Result<(), Error> {
        let killed_by_kernel = event.kind == lifemon_ebpf::EVENT_EXIT
            && event.status & 0x7f == 9
            && event.flags == SENT_BY_KERNEL;
        if killed_by_kernel
            && self
                .watcher
                .get_ref()
                .tracker()
                .was_oom_victim(&event.process)?
        {
            event.flags |= lifemon_ebpf::OOM_KILLED;
        }
        Ok(())
    }

    fn report(&mut self, happening: Happening) {
        if let (What::Exit { .. }, false) = (&happening.what, self.ignores_gone) {
            self.unfollowed.push(happening.process.id);
        }
        self.ready.push(Update::Happening(Box::new(happening)));
    }

    /// Waits for a dying member to be gone. Its pid may be free and taken again by now: then the
    /// descriptor is another process's, which its start time shows, and it is gone already.
    fn follow(&mut self, id: ProcessId) {
        match pidfd::open(id.pid) {
            Ok(pidfd) if !proc::has_successor(id) => match readable(pidfd) {
                Ok(pidfd) => {
                    self.dying.spawn(async move {
                        let _ = pidfd.readable().await;
                        id
                    });
                }
                Err(_) => self.polled.push(id),
            },
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => self.polled.push(id),
            _ => {
                self.dying.spawn(std::future::ready(id));
            }
        }
    }

    fn report_gone(&mut self, id: ProcessId) {
        for happening in self.watch.gone(id, clock::boot_ns()) {
            self.report(happening);
        }
    }

    fn on_tick(&mut self) -> Result<(), Error> {
        let (gone, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.polled)
            .into_iter()
            .partition(|id| proc::is_gone(*id));
        self.polled = waiting;
        for id in gone {
            self.report_gone(id);
        }
        if self.watcher.get_ref().is_cut_off() && !self.standing.contains(&Loss::SwitchedOff) {
            self.lose(Loss::SwitchedOff, 0, false);
            self.ended = true;
        }
        self.check_missed_runs()
    }

    /// Says once that nothing can run again, and ends when the last member is gone.
    fn check_extinct(&mut self) -> bool {
        if self.watcher.get_ref().counters().live != 0 {
            return false;
        }
        let Some(since) = self.extinct_since else {
            self.extinct_since = Some(Instant::now());
            // Whatever led to 0 was reported before the count went down: look once more.
            let _ = self.drain();
            self.ready.push(Update::Extinct);
            return true;
        };
        let all_gone =
            self.dying.is_empty() && self.polled.is_empty() && self.unfollowed.is_empty();
        if all_gone || since.elapsed() > GONE_TIMEOUT {
            self.ended = true;
            return true;
        }
        false
    }

    fn lose(&mut self, loss: Loss, count: u64, recovered: bool) {
        if recovered {
            self.standing.retain(|standing| *standing != loss);
        } else if !self.standing.contains(&loss) {
            self.standing.push(loss);
        }
        let complete = self.standing.is_empty();
        self.ready.push(Update::Lost {
            loss,
            count,
            recovered,
            complete,
        });
    }

    /// Returns the members and the events that were lost since the last look.
    fn unseen_losses(&self) -> [u64; 2] {
        let counters = self.watcher.get_ref().counters();
        [
            counters.lost_members.saturating_sub(self.seen.members),
            counters.lost_events.saturating_sub(self.seen.events),
        ]
    }

    /// Reports what was lost since the last look, and makes the model right again.
    fn check_losses(&mut self) -> Result<(), Error> {
        let host = self.watcher.get_ref().tracker().host_counters();
        if host.lost_records > self.seen.records {
            self.lose(
                Loss::LineageFull,
                host.lost_records - self.seen.records,
                false,
            );
            self.seen.records = host.lost_records;
        }
        // They were learnt again.
        self.seen.records = self.seen.records.min(host.lost_records);
        let [members, events] = self.unseen_losses();
        if members == 0 && events == 0 {
            return Ok(());
        }
        if members > 0 {
            self.lose(Loss::MembersFull, members, false);
            let settled = self.watcher.get_mut().relabel()?.is_complete();
            // What the passes themselves could not insert has been counted as well.
            self.seen.members = self.watcher.get_ref().counters().lost_members;
            if settled {
                self.lose(Loss::MembersFull, members, true);
            }
        }
        if events > 0 {
            self.seen.events += events;
            self.lose(Loss::RingFull, events, false);
        }
        self.resync()?;
        // Lost again meanwhile: the next drain compares again.
        if events > 0 && self.watcher.get_ref().counters().lost_events == self.seen.events {
            self.lose(Loss::RingFull, events, true);
        }
        Ok(())
    }

    /// Compares the model with the kernel's membership map.
    fn resync(&mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        self.watcher.get_mut().drain(&mut events, usize::MAX);
        for event in std::mem::take(&mut events) {
            self.handle(&event)?;
        }
        self.watch.mark();
        let members = self.watcher.get_ref().live_members()?;
        let snapshot = self.watcher.get_ref().tracker().snapshot()?;
        self.watcher.get_mut().drain(&mut events, usize::MAX);
        for event in &events {
            self.handle(event)?;
        }
        let records: std::collections::HashMap<_, _> = snapshot.records.into_iter().collect();
        let found = self.watch.resync(&members, |id| match records.get(&id) {
            Some(record) => Known {
                process: Some(Process::of_record(id, record)),
                died: Died::of_record(record),
            },
            None => Known::default(),
        });
        for happening in found {
            self.report(happening);
        }
        Ok(())
    }
}

// SAFETY: it returns the descriptor of its ring, which it owns and never exchanges.
unsafe impl OwnsDescriptor for Watcher {}

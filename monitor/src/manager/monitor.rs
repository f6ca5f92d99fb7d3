//! The monitor: a thread of its own that follows the guardian, the kernel's events and the signals,
//! so that a busy server delays nothing. What it learns goes into [`Shared`].

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::START_TIMEOUT;
use super::guarded::Guarded;
use super::options::Options;
use super::orphans::Survivors;
use super::signals::{Signals, end_process};
use super::state::{Report, Shared, Stop};
use crate::ProcessId;
use crate::kernel::{self, LoadOptions, Tracker, WatchOptions, clock};
use crate::kill::kill_watched;
use crate::kill::outcome::{Order, Outcome, Way};
use crate::loss::{Incomplete, Loss};
use crate::proc;
use crate::process::is_same_process;
use crate::session::{Session, Update};
use crate::supervise::frame::{Frames, MessageError};
use crate::supervise::guardian::Guardian;
use crate::supervise::message::{Notice, Request, encode};
use crate::sys::runtime::current_thread;
use crate::watch::What;

/// Longest time to go on killing what a killed guardian has left.
const RESCUE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request of the manager to the monitor.
pub(super) enum Ask {
    /// To hand a request to the guardian.
    Guardian(Request),
    /// To kill one process below the guardian with what is below it.
    Kill(ProcessId, oneshot::Sender<Outcome>),
    /// To kill the guardian, which has not started the workers.
    GiveUp,
}

/// A kill that the guardian was asked for.
struct AskedKill {
    id: ProcessId,
    answer: oneshot::Sender<Outcome>,
}

pub(super) struct Monitor {
    shared: Arc<Shared>,
    asks: mpsc::UnboundedReceiver<Ask>,
    guardian: Guardian,
    channel: tokio::net::UnixStream,
    frames: Frames,
    session: Option<Session>,
    loading: Option<JoinHandle<Result<Tracker, kernel::Error>>>,
    /// The guard of the node agent, where the tracker cannot be used.
    guarded: Option<Guarded>,
    guarding: Option<JoinHandle<Option<Guarded>>>,
    kills: Vec<AskedKill>,
    /// Interval of the regular looks, in addition to events.
    interval: Duration,
    /// True once the guardian's channel is closed.
    is_alone: bool,
    /// True once the manager was dropped.
    is_dropped: bool,
}

impl Monitor {
    /// Starts the thread, which sends the brief first. Returns when signals are handled.
    pub(super) fn start(
        options: &Options,
        shared: Arc<Shared>,
        guardian: Guardian,
        channel: UnixStream,
        brief: Vec<u8>,
        asks: mpsc::UnboundedReceiver<Ask>,
    ) -> io::Result<()> {
        channel.set_nonblocking(true)?;
        let (handles_signals, use_ebpf) = (options.signals, options.use_ebpf);
        let period = options.monitor_interval.max(Duration::from_millis(1));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let body = move || {
            let runtime = current_thread();
            let started = runtime.and_then(|runtime| {
                let inside = runtime.enter();
                let channel = tokio::net::UnixStream::from_std(channel)?;
                let signals = Signals::register(handles_signals)?;
                drop(inside);
                Ok((runtime, channel, signals))
            });
            let (runtime, channel, signals) = match started {
                Ok(started) => started,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let kept = Arc::clone(&shared);
            let monitor = Self {
                shared,
                asks,
                guardian,
                channel,
                frames: Frames::default(),
                session: None,
                loading: None,
                guarded: None,
                guarding: None,
                kills: Vec::new(),
                interval: period,
                is_alone: false,
                is_dropped: false,
            };
            let signals = runtime.block_on(monitor.run(signals, brief, use_ebpf));
            runtime.block_on(signals.outlive(&kept));
        };
        std::thread::Builder::new()
            .name("lifemon-monitor".to_owned())
            .spawn(body)?;
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the monitor has ended")))
    }

    /// Works until the guardian is gone.
    async fn run(mut self, mut signals: Signals, brief: Vec<u8>, use_ebpf: bool) -> Signals {
        if use_ebpf {
            let load = || Tracker::open_or_load(&LoadOptions::default());
            self.loading = Some(tokio::task::spawn_blocking(load));
        } else {
            let why = "the tracker is switched off by an option";
            self.shared.lock().incomplete = vec![Incomplete::because(Loss::NoTracker, why)];
        }
        let sent = timeout(START_TIMEOUT, self.channel.write_all(&brief)).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.give_up();
        }
        let mut tick = interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; 64 << 10];
        while !self.is_alone {
            tokio::select! {
                biased;
                // First: deaths that were meant come after what was asked for.
                stop = signals.recv() => self.take_signal(stop).await,
                updates = next(&mut self.session) => self.take_updates(updates),
                read = self.channel.read(&mut buffer) => match read {
                    Ok(count @ 1..) => self.receive(&buffer[..count]),
                    _ => self.is_alone = true,
                },
                ask = self.asks.recv(), if !self.is_dropped => self.take_ask(ask).await,
                loaded = loaded(&mut self.loading) => self.begin_session(loaded),
                guarded = guarded(&mut self.guarding) => self.take_guard(guarded),
                _ = tick.tick() => {
                    self.look();
                    self.keep_guard();
                }
            }
        }
        self.close().await;
        signals
    }

    fn give_up(&mut self) {
        self.guardian.kill();
        self.is_alone = true;
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
        let notices: Vec<_> = self.frames.messages().collect();
        for notice in notices {
            match notice {
                Ok(notice) => self.take_notice(notice),
                Err(MessageError::Frame(_)) => self.is_alone = true,
                Err(error) => log::warn!("the guardian: {error}"),
            }
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        let now = clock::boot_ns();
        match notice {
            Notice::Started { worker, id } => {
                let mut inner = self.shared.lock();
                if let Some(worker) = inner.workers.get_mut(worker) {
                    let session = self.session.as_ref();
                    let exact = session.and_then(|session| session.watch().exact(id));
                    worker.id = Some(exact.unwrap_or(id));
                }
            }
            Notice::Failed { worker, errno } => {
                let error = io::Error::from_raw_os_error(errno);
                let cause = format!("could not be started: {error}");
                self.shared.bury(worker, now, Report::Fact(&cause));
            }
            Notice::Died { worker, death } => {
                self.shared.bury(worker, now, Report::Status(&death));
            }
            Notice::Killed { id, outcome } => {
                let at = self.kills.iter().position(|asked| asked.id == id);
                if let Some(at) = at {
                    let _ = self.kills.swap_remove(at).answer.send(outcome);
                }
            }
            // It has ended when the guardian itself is gone: that is the next and last thing it
            // does.
            Notice::Ended(rest) => self.shared.lock().rest = Some(rest),
            Notice::Ready { .. } | Notice::Stopped { .. } | Notice::Daemons => {}
        }
    }

    async fn send(&mut self, request: &Request) {
        if let Ok(bytes) = encode(request)
            && self.channel.write_all(&bytes).await.is_err()
        {
            self.is_alone = true;
        }
    }

    async fn take_ask(&mut self, ask: Option<Ask>) {
        match ask {
            Some(Ask::Guardian(request)) => self.send(&request).await,
            Some(Ask::Kill(id, answer)) => {
                self.kills.push(AskedKill { id, answer });
                self.send(&Request::Kill { id }).await;
            }
            Some(Ask::GiveUp) => self.give_up(),
            None => {
                self.is_dropped = true;
                self.end_now().await;
            }
        }
    }

    /// Hears the guardian until it has done what it was asked for.
    async fn drain(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = self.channel.read(&mut buffer).await {
            self.receive(&buffer[..count]);
        }
        self.is_alone = true;
    }

    async fn end_now(&mut self) {
        self.send(&Request::End(Order::default())).await;
        self.send(&Request::Hurry).await;
    }

    async fn take_signal(&mut self, stop: Stop) {
        self.shared.take_signal(stop, Instant::now());
        if stop == Stop::Now {
            self.end_now().await;
            self.drain().await;
            self.close().await;
            end_process();
        }
    }

    fn begin_session(&mut self, loaded: Result<Tracker, kernel::Error>) {
        self.loading = None;
        let started = loaded.and_then(|tracker| {
            let pid = self.guardian.pid();
            let root = tracker.snapshot()?.live(pid).map(|(id, _)| *id);
            let root = root.ok_or_else(|| kernel::Error::NoProcess(pid.to_string()))?;
            Session::start(tracker, root, &WatchOptions::default())
        });
        match started {
            Ok((session, start)) => {
                start
                    .members
                    .iter()
                    .for_each(|member| self.learn(member.id));
                {
                    let mut inner = self.shared.lock();
                    inner.way = Way::Ebpf;
                    inner.incomplete.clear();
                }
                self.session = Some(session);
                self.publish();
            }
            Err(error) => {
                let why = Incomplete::because(Loss::NoTracker, error.to_string());
                self.shared.lock().incomplete = vec![why];
                let pid = self.guardian.pid();
                let begin = move || Guarded::begin(pid).inspect_err(no_guard).ok();
                self.guarding = Some(tokio::task::spawn_blocking(begin));
            }
        }
    }

    fn take_guard(&mut self, guarded: Option<Guarded>) {
        self.guarding = None;
        let is_guarded = guarded.is_some();
        self.guarded = guarded;
        if self.session.is_none() {
            let way = if is_guarded {
                Way::Agent
            } else {
                Way::Subreaper
            };
            self.shared.lock().way = way;
        }
    }

    /// Takes the guard up again, should the agent have been restarted.
    fn keep_guard(&mut self) {
        if let Some(guarded) = self.guarded.take_if(|guarded| !guarded.is_connected()) {
            let take_up = move || guarded.take_up();
            self.guarding = Some(tokio::task::spawn_blocking(take_up));
        }
    }

    fn take_updates(&mut self, updates: Result<Vec<Update>, kernel::Error>) {
        let updates = match updates {
            Ok(updates) => updates,
            Err(error) => {
                return self.lose_session(Incomplete::because(Loss::NoTracker, error.to_string()));
            }
        };
        let mut has_ended = false;
        for update in updates {
            match update {
                Update::Happening(happening) => {
                    self.learn(happening.process.id);
                    if let What::Exit { death, .. } = &happening.what
                        && let Some(worker) = self.worker(happening.process.id)
                    {
                        let at = happening.at_ns.unwrap_or_else(clock::boot_ns);
                        let report = Report::of_event(death.as_ref());
                        self.shared.bury(worker, at, report);
                    }
                }
                Update::End => has_ended = true,
                Update::Lost { .. } | Update::Extinct => {}
            }
        }
        self.publish();
        if has_ended {
            self.lose_session(Loss::SwitchedOff.into());
        }
    }

    fn lose_session(&mut self, why: Incomplete) {
        self.session = None;
        let mut inner = self.shared.lock();
        inner.way = Way::Subreaper;
        inner.incomplete = vec![why];
    }

    /// Returns the worker with this identity. The guardian's is exact to a clock tick.
    fn worker(&self, id: ProcessId) -> Option<usize> {
        let inner = self.shared.lock();
        let is_this = |known: ProcessId| is_same_process(known, id);
        inner
            .workers
            .iter()
            .position(|worker| worker.id.is_some_and(is_this))
    }

    /// Takes over the exact identity of a worker.
    fn learn(&self, id: ProcessId) {
        if let Some(worker) = self.worker(id)
            && let Some(worker) = self.shared.lock().workers.get_mut(worker)
        {
            worker.id = Some(id);
        }
    }

    fn publish(&self) {
        let Some(session) = &self.session else { return };
        let mut inner = self.shared.lock();
        inner.orphans = session.watch().orphans();
        // The guardian is a subreaper from its beginning: nothing has ever left its tree.
        let losses = session.standing_losses().iter().copied();
        let losses = losses.filter(|loss| !loss.is_missing_history());
        inner.incomplete = losses.map(Into::into).collect();
    }

    /// Looks for dead workers: the fallback, should a notice of the guardian have been lost.
    fn look(&self) {
        let workers: Vec<_> = {
            let inner = self.shared.lock();
            let alive = inner.workers.iter().enumerate();
            alive
                .filter(|(_, worker)| worker.death.is_none())
                .filter_map(|(index, worker)| Some((index, worker.id?)))
                // Without a start nothing proves who has its pid.
                .filter(|(_, id)| id.start_ns != 0)
                .collect()
        };
        for (index, id) in workers {
            if proc::is_gone(id) {
                let report = Report::Fact("not known");
                self.shared.bury(index, clock::boot_ns(), report);
            }
        }
    }

    /// Ends the work when the guardian is gone: it has done its own, or was killed, and then the
    /// workers die with it.
    async fn close(&mut self) {
        self.guardian.wait();
        let now = clock::boot_ns();
        for worker in 0..self.shared.workers() {
            let report = Report::Fact("the guardian is gone");
            self.shared.bury(worker, now, report);
        }
        if let Some(guarding) = self.guarding.take() {
            self.guarded = guarding.await.unwrap_or_default();
        }
        let guarded = self.guarded.take();
        if self.shared.lock().rest.is_some() {
            if let Some(guarded) = guarded {
                guarded.release();
            }
            return self.shared.end();
        }
        // From here on the agent ends what the workers have left.
        drop(guarded);
        self.shared.lock().incomplete = vec![Loss::GuardianDead.into()];
        if let Some(session) = &mut self.session {
            match kill_watched(session, RESCUE_TIMEOUT).await {
                Ok(left) if left.is_empty() => {}
                Ok(left) => {
                    let left = Survivors(&left);
                    log::error!("the workers have left what cannot be killed: {left}");
                }
                Err(error) => log::error!("what the workers have left was not killed: {error}"),
            }
        }
        self.shared.end();
    }
}

async fn next(session: &mut Option<Session>) -> Result<Vec<Update>, kernel::Error> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

fn no_guard(error: &io::Error) {
    log::debug!("the node agent does not guard the workers: {error}");
}

async fn guarded(guarding: &mut Option<JoinHandle<Option<Guarded>>>) -> Option<Guarded> {
    match guarding {
        Some(guarding) => guarding.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn loaded(
    loading: &mut Option<JoinHandle<Result<Tracker, kernel::Error>>>,
) -> Result<Tracker, kernel::Error> {
    match loading {
        Some(loading) => loading
            .await
            .unwrap_or_else(|error| Err(kernel::Error::Map(io::Error::other(error)))),
        None => std::future::pending().await,
    }
}

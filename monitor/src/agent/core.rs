//! The core: holds the capabilities, accepts connections, asks the kernel who is there, and answers
//! what the front asks in the name of a connection.
//!
//! A connection is known here by a descriptor of its own, so that its end is seen without the
//! front's word, and a front that ends takes no connection for closed that the caller has not
//! closed.

mod answers;
mod events;
mod fronts;
mod guards;
mod kills;
mod permits;
mod waits;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_blocking};

use crate::ProcessId;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::{Error, Tracker};
use crate::sys::poll::closable;
use crate::sys::runtime::current_thread;

use super::audit::Audit;
use super::call::{Answer, Call, Message};
use super::handles::Handles;
use super::limits::{Good, Limits, Taken};
use super::peer::{Host, Peer};
use super::problem::{Code, Problem};
use super::trim::Trim;
use events::Events;
use fronts::{Front, Fronts};
use guards::Guards;
use kills::Kills;

/// Questions of one connection that may be open at once: HTTP/1.1 asks one after the other.
const ASKS_MAX: usize = 4;
/// Answers that are made at once for all but the operator.
const ANSWERS_MAX: usize = 2;
/// The time for a refused caller to read why.
const REFUSAL: Duration = Duration::from_secs(1);

/// The core.
pub(super) struct Core {
    host: Host,
    epoch: String,
    tracker: Mutex<Option<Tracker>>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next_connection: AtomicU64,
    answering: Semaphore,
    fronts: Fronts,
    limits: Arc<Limits>,
    handles: Handles,
    kills: Kills,
    guards: Guards,
    events: Events,
    audit: Audit,
    trim: Trim,
}

/// An open connection.
pub(super) struct Connection {
    /// Its number, never used again.
    pub(super) number: u64,
    /// Who is at the other end.
    pub(super) peer: Arc<Peer>,
    /// The front that has it, by its generation.
    front: u64,
    socket: AsyncFd<OwnedFd>,
    asks: Mutex<HashMap<u64, Option<AbortHandle>>>,
    _taken: Taken,
}

/// Locks, also after a panic of somebody else: what is locked here is whole at any time.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Makes the core; takes over what an agent before has left in the state.
    ///
    /// # Errors
    /// When the state cannot be read or the fronts cannot be started.
    pub(super) fn start(
        host: Host,
        epoch: String,
        tracker: Tracker,
        state: &Path,
        front: PathBuf,
    ) -> io::Result<Arc<Self>> {
        let core = Arc::new(Self {
            host,
            epoch,
            tracker: Mutex::new(Some(tracker)),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(1),
            answering: Semaphore::new(ANSWERS_MAX),
            fronts: Fronts::of_program(front),
            limits: Arc::default(),
            handles: Handles::default(),
            kills: Kills::open(state)?,
            guards: Guards::open(state)?,
            events: Events::default(),
            audit: Audit::open(),
            trim: Trim::default(),
        });
        core.fronts.start(&core)?;
        Guards::adopt(&core);
        let trims = Arc::clone(&core);
        tokio::spawn(async move { trims.trim.run().await });
        core.trim.note();
        Ok(core)
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    fn kills(&self) -> &Kills {
        &self.kills
    }

    fn guards(&self) -> &Guards {
        &self.guards
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn fronts(&self) -> &Fronts {
        &self.fronts
    }

    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Returns what changes with each start: events of another epoch are not these.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Reads all records.
    ///
    /// # Errors
    /// [`Code::Unavailable`] where the tracker is off.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.with_tracker(|tracker| tracker.snapshot())
    }

    /// Reads all records, and who adopts orphans.
    ///
    /// # Errors
    /// As [`Core::snapshot`].
    pub(super) fn snapshot_with_subreapers(
        &self,
    ) -> Result<(Snapshot, std::collections::HashSet<ProcessId>), Problem> {
        self.with_tracker(|tracker| Ok((tracker.snapshot()?, tracker.subreapers()?)))
    }

    /// Reads the flight recorder, and all records.
    ///
    /// # Errors
    /// As [`Core::snapshot`].
    fn log(&self) -> Result<(Log, Snapshot), Problem> {
        self.with_tracker(|tracker| Ok((tracker.log()?, tracker.snapshot()?)))
    }

    fn with_tracker<T>(
        &self,
        ask: impl FnOnce(&mut Tracker) -> Result<T, Error>,
    ) -> Result<T, Problem> {
        let mut tracker = lock(&self.tracker);
        if tracker
            .as_ref()
            .is_some_and(|tracker| tracker.since_ns() == 0)
        {
            *tracker = None;
        }
        if tracker.is_none() {
            *tracker = Tracker::open()?;
        }
        let off = || {
            let detail = "the tracker was switched off; `lifemon track on` switches it on";
            Problem::new(Code::Unavailable, detail)
        };
        let tracker = tracker.as_mut().ok_or_else(off)?;
        tracker.heal()?;
        Ok(ask(tracker)?)
    }

    /// Takes a connection that was accepted: finds out who it is, and passes it to a front.
    pub(super) fn accept(self: &Arc<Self>, socket: UnixStream) {
        let admitted = Peer::of(&socket, &self.host)
            .map_err(|error| Problem::new(Code::PeerGone, error.to_string()))
            .and_then(|peer| {
                let taken = self.limits.take(Good::Connection, &peer.account())?;
                Ok((peer, taken))
            });
        match admitted {
            Ok((peer, taken)) => {
                if let Err(error) = self.pass_on(socket, peer, taken) {
                    log::warn!("a connection could not be passed on: {error}");
                }
            }
            Err(problem) => {
                self.audit
                    .write("refused", None, json!({"code": problem.code}));
                tokio::spawn(refuse(socket, problem));
            }
        }
    }

    fn pass_on(self: &Arc<Self>, socket: UnixStream, peer: Peer, taken: Taken) -> io::Result<()> {
        let socket = OwnedFd::from(socket.into_std()?);
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let front = self.fronts.of(&peer)?;
        let connection = Arc::new(Connection {
            number,
            peer: Arc::new(peer),
            front: front.generation(),
            socket: closable(socket)?,
            asks: Mutex::default(),
            _taken: taken,
        });
        lock(&self.connections).insert(number, Arc::clone(&connection));
        if let Err(error) = front.take(number, connection.socket.get_ref().as_fd()) {
            lock(&self.connections).remove(&number);
            return Err(error);
        }
        let core = Arc::clone(self);
        tokio::spawn(async move {
            connection.closed().await;
            core.end(&connection, true);
        });
        Ok(())
    }

    /// Takes a connection of the second socket.
    pub(super) fn accept_handle(self: &Arc<Self>, socket: UnixStream) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(peer) = Peer::of(&socket, &core.host) else {
                return;
            };
            if let Ok(_taken) = core.limits.take(Good::Connection, &peer.account()) {
                let _ = core.handles.serve(socket, &peer).await;
            }
        });
    }

    /// Ends a connection. `by_caller` where the caller has closed it.
    fn end(self: &Arc<Self>, connection: &Arc<Connection>, by_caller: bool) {
        if lock(&self.connections).remove(&connection.number).is_none() {
            return;
        }
        let asks = std::mem::take(&mut *lock(&connection.asks));
        for abort in asks.into_values().flatten() {
            abort.abort();
        }
        let _ = rustix::net::shutdown(connection.socket.get_ref(), rustix::net::Shutdown::Both);
        self.events.disconnected(connection.number);
        Guards::disconnected(self, connection.number, by_caller);
        self.trim.note();
    }

    /// Ends the connections of a front that has ended. The callers have not closed them.
    pub(super) fn front_ended(self: &Arc<Self>, generation: u64) {
        let connections: Vec<_> = lock(&self.connections)
            .values()
            .filter(|connection| connection.front == generation)
            .cloned()
            .collect();
        for connection in connections {
            let by_caller = connection.is_closed();
            self.end(&connection, by_caller);
        }
    }

    /// Does what a front says, as far as it may.
    fn hear(self: &Arc<Self>, front: &Arc<Front>, message: Message) {
        match message {
            Message::Ask {
                connection,
                number,
                call,
            } => self.ask(front, connection, number, *call),
            Message::Forget { number } => {
                for connection in self.connections_of(front) {
                    if let Some(Some(abort)) = lock(&connection.asks).remove(&number) {
                        abort.abort();
                    }
                }
            }
            Message::Passed { number, bytes } => front.passed(number, bytes),
            Message::Done { connection } => {
                if let Some(connection) = self.connection(front, connection) {
                    let by_caller = connection.is_closed();
                    self.end(&connection, by_caller);
                }
            }
        }
    }

    /// Returns whether a connection is open.
    pub(super) fn is_open(&self, number: u64) -> bool {
        lock(&self.connections).contains_key(&number)
    }

    fn connections_of(&self, front: &Front) -> Vec<Arc<Connection>> {
        let connections = lock(&self.connections);
        let own = connections
            .values()
            .filter(|connection| connection.front == front.generation());
        own.cloned().collect()
    }

    /// Returns a connection that this front was given; others it cannot name.
    fn connection(&self, front: &Front, number: u64) -> Option<Arc<Connection>> {
        let connections = lock(&self.connections);
        let connection = connections.get(&number)?;
        (connection.front == front.generation()).then(|| Arc::clone(connection))
    }

    fn ask(self: &Arc<Self>, front: &Arc<Front>, connection: u64, number: u64, call: Call) {
        let Some(connection) = self.connection(front, connection) else {
            let problem = Problem::new(Code::Forbidden, "there is no such connection");
            front.answer(number, problem.into());
            return;
        };
        let mut asks = lock(&connection.asks);
        if asks.len() >= ASKS_MAX || asks.contains_key(&number) {
            let problem = Problem::new(Code::LimitReached, "one question after the other");
            front.answer(number, problem.into());
            return;
        }
        asks.insert(number, None);
        drop(asks);
        let (core, front, of) = (Arc::clone(self), Arc::clone(front), Arc::clone(&connection));
        let task = tokio::spawn(async move {
            if let Some(answer) = core.answer(&of, &front, number, call).await {
                front.answer(number, answer);
            }
            lock(&of.asks).remove(&number);
            core.trim.note();
        });
        if let Some(ask) = lock(&connection.asks).get_mut(&number) {
            *ask = Some(task.abort_handle());
        }
    }

    /// Answers a call; `None` where the answer is a stream, which has ended.
    async fn answer(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        front: &Arc<Front>,
        number: u64,
        call: Call,
    ) -> Option<Answer> {
        let peer = Arc::clone(&connection.peer);
        let answered = match call {
            Call::Tree { process, form } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::tree(core, &peer, process.as_ref(), form)
                })
                .await
            }
            Call::Orphans { query, form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::orphans(core, &peer, &query, form))?
                })
                .await
            }
            Call::Gpu { form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::gpu(core, &peer, form))?
                })
                .await
            }
            Call::Explain { process, form } => {
                self.at_work(&peer.clone(), move |core| {
                    block_on(answers::explain(core, &peer, &process, form))?
                })
                .await
            }
            Call::Log { query, form } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::log(core, &peer, &query, form)
                })
                .await
            }
            Call::Health { process } => {
                self.at_work(&peer.clone(), move |core| {
                    answers::health(core, &peer, &process)
                })
                .await
            }
            Call::Info => {
                self.at_work(&peer.clone(), move |core| answers::info(core, &peer))
                    .await
            }
            Call::Ready => {
                self.at_work(&peer, |core| {
                    core.snapshot()?;
                    Ok(Answer::object(200, &json!({"ready": true})))
                })
                .await
            }
            Call::Kill { request, key } => Kills::kill(self, &peer, request, key).await,
            Call::KillState { id, form } => self.kills.state(&peer, &id, form),
            Call::Guard { request } => {
                // In a task of its own: a caller that goes meanwhile does not leave half a guard.
                let (core, connection) = (Arc::clone(self), Arc::clone(connection));
                let making =
                    tokio::spawn(async move { Guards::make(&core, &connection, request).await });
                making
                    .await
                    .unwrap_or_else(|error| Err(Problem::new(Code::Internal, error.to_string())))
            }
            Call::Guards => Ok(self.guards.list(&peer)),
            Call::TakeUp { id } => Guards::take_up(self, connection, &id),
            Call::Release { id } => Guards::release(self, &peer, &id),
            Call::Wait { request } => waits::wait(self, &peer, request).await,
            Call::Watch { request } => Events::watch(self, connection, request).await,
            Call::Watches => Ok(self.events.list(&peer)),
            Call::Unwatch { id } => self.events.unwatch(&peer, &id),
            Call::Events { query } => {
                match events::stream(self, &peer, front, number, query).await {
                    Ok(()) => return None,
                    Err(problem) => Err(problem),
                }
            }
        };
        if let Err(problem) = &answered
            && problem.code.is_refusal()
        {
            let fields = json!({"code": problem.code, "detail": problem.detail});
            self.audit.write("refused", Some(&connection.peer), fields);
        }
        Some(answered.into())
    }

    /// Does work that takes a while on a thread of its own. Who is not the operator waits for the
    /// others who are not.
    pub(super) async fn at_work<T: Send + 'static>(
        self: &Arc<Self>,
        peer: &Peer,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let failed =
            |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error.to_string());
        let _permit = if peer.is_operator() {
            None
        } else {
            let permit = self.answering.acquire().await;
            Some(permit.map_err(|error| failed(&error))?)
        };
        let core = Arc::clone(self);
        let done = spawn_blocking(move || work(&core)).await;
        done.map_err(|error| failed(&error))?
    }
}

/// Runs what asks a driver, on a thread that does nothing else.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Problem> {
    let runtime = current_thread();
    let runtime = runtime.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(runtime.block_on(work))
}

impl Connection {
    /// Waits until the caller has closed it.
    async fn closed(&self) {
        loop {
            let Ok(mut ready) = self.socket.ready(Interest::PRIORITY).await else {
                return;
            };
            if self.is_closed() {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Returns whether the caller has closed it: nothing comes any more, and nothing is read.
    fn is_closed(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut sources = [PollFd::new(
            self.socket.get_ref().as_fd(),
            PollFlags::empty(),
        )];
        let polled = poll(&mut sources, PollTimeout::ZERO);
        let events = sources[0].revents().unwrap_or(PollFlags::empty());
        polled.is_err() || events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
    }
}

/// Tells a caller why it is not let in.
async fn refuse(mut socket: UnixStream, problem: Problem) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let body = problem.to_json();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        problem.status,
        problem.title,
        body.len()
    );
    let talk = async {
        socket.write_all((head + &body).as_bytes()).await?;
        socket.shutdown().await?;
        // What is not read when it is closed lets the caller lose the answer.
        let mut rest = [0; 4096];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSAL, talk).await;
}

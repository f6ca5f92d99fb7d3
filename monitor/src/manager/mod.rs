//! [`ProcessManager`] runs the workers of a server, reports their deaths at once, and leaves
//! nothing of them behind when the server ends, however it ends.
//!
//! The workers are children of a *guardian*: this program, executed anew,
//! small and alone in its process group. It is a subreaper, so all that a worker leaves stays below
//! it. Should the server panic, abort or be killed, the guardian kills everything below itself and
//! ends. Should the guardian be killed, the workers die with it, and with privileges the monitor
//! kills what they have left; without them that lingers.
//!
//! | the Python module | here |
//! |---|---|
//! | `ProcessManager(processes, connections, …)` | [`ProcessManager::start`] with [`Options`], which have the same defaults; it starts the workers and makes their connections |
//! | `register_signal_handlers()` | [`Options::signals`]; a second signal kills at once and ends the server with 1 |
//! | `lifespan_context()` | [`ProcessManager::lifespan`]: [`Lifespan::stop_asked`] for a graceful server, [`Lifespan::finish`] on the way out |
//! | `check_workers_alive()` | [`ProcessManager::check_workers_alive`]: one atomic load; the error also says why and since when |
//! | `get_health_status()` | [`ProcessManager::health_status`]: the same keys, and causes, orphans, completeness |
//! | `monitor_workers()` | [`ProcessManager::monitor_workers`]: by event, not by poll; kills also what dead workers have left |
//! | `register_cleanup()` | always: the guardian |
//! | shutdown | [`ProcessManager::shutdown`]: the same steps and time-outs, all workers at the same time, then what is left of their trees |
//! | `cleanup_orphan_processes(*patterns)` | [`ProcessManager::cleanup_orphans`]: matches *and* is an orphan of this manager, or of a dead server by [`Scope`] |
//! | `is_fatal_worker_error(exc)` | [`is_fatal_worker_error`], over the whole chain; [`FatalRules`] to extend |
//! | `kill_process_tree(pid)` | [`ProcessManager::kill_process_tree`] |
//! | `safe_recv(conn)` | [`Connection::safe_recv`]; [`Connection::recv`] with typed errors |
//!
//! What is known of workers comes from eBPF with privileges ([`Way::Ebpf`]), otherwise from the
//! guardian, their parent. Where a node agent runs, it guards what is below the guardian
//! ([`Way::Agent`]): should server and guardian both be killed, it ends what the workers have left.
//! Without one the guardian is alone ([`Way::Subreaper`]).

mod connection;
mod fatal;
mod guarded;
mod health;
mod helper;
mod lifespan;
mod monitor;
mod options;
mod orphans;
mod signals;
mod state;

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::ProcessId;
use crate::kill::ending::LIMIT;
use crate::kill::outcome::{Order, Outcome};
use crate::supervise::executed::{Brief, words};
use crate::supervise::guardian::Guardian;
use crate::supervise::message::{Request, Spec, encode};
use monitor::{Ask, Monitor};
use state::Shared;

pub use crate::kill::{Killed, Rest, Subject, Survivor, Way};
pub use crate::supervise::run_if_asked;
pub use connection::{Connection, ConnectionError, FRAME_BYTES_MAX, SEND_TIMEOUT, WORKER_FD};
pub use fatal::{FatalRules, is_fatal_worker_error};
pub use health::{DeadWorker, GpuHolder, Health, HealthStatus, WorkersDied};
#[doc(hidden)]
pub use helper::serve_helper;
pub(crate) use helper::{Asker, serve_lent};
pub use lifespan::Lifespan;
pub use options::{Options, Policy, WorkerCommand};
pub use orphans::{Cleaned, Scope, TreeKillError};
pub use state::Stop;

/// Longest time until the workers are started.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time until a worker accepts the shutdown message.
const SHUTDOWN_MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest time for the guardian to kill a tree and to report the survivors.
const TREE_KILL_TIMEOUT: Duration = LIMIT.saturating_add(Duration::from_secs(10));

/// The reason why a manager was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Something that it needs failed.
    #[error("cannot start the workers: {0}")]
    Io(#[from] io::Error),
    /// This process is the guardian of another.
    #[error(
        "this process was started to be a guardian: call lifemon::manager::run_if_asked() first \
        in main"
    )]
    NotAsked,
    /// The guardian did not answer.
    #[error(
        "the guardian has not started the workers in {START_TIMEOUT:?}: does main call \
        lifemon::manager::run_if_asked() first?"
    )]
    NoAnswer,
}

/// The outcome of the end of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finished {
    /// 0 after a shutdown that was asked for; 1 when workers had died before, or it was cut short.
    pub code: u8,
    /// The outcome for everything below the guardian; `None` when the guardian was killed before it
    /// could report.
    pub rest: Option<Rest>,
    /// Orphans of other dead servers, and such, that were cleaned up.
    pub cleaned: Vec<Cleaned>,
}

/// The workers of this server. Dropping it ends them at once.
///
/// ```no_run
/// use lifemon::ProcessManager;
/// use lifemon::manager::{Options, WorkerCommand, run_if_asked};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // The guardian is this program, executed anew: this call comes first.
///     run_if_asked();
///     let runtime = tokio::runtime::Builder::new_current_thread()
///         .enable_all()
///         .build()?;
///     let finished = runtime.block_on(async {
///         let worker = WorkerCommand::new("python3").arg("worker.py");
///         let manager = ProcessManager::start(Options::new([worker])).await?;
///         // Serves until a signal asks for the end, or the workers have died.
///         manager.stop_asked().await;
///         Ok::<_, lifemon::manager::StartError>(manager.shutdown().await)
///     })?;
///     std::process::exit(finished.code.into());
/// }
/// ```
#[derive(Debug)]
pub struct ProcessManager {
    shared: Arc<Shared>,
    options: Options,
    connections: Vec<Connection>,
    asks: mpsc::UnboundedSender<Ask>,
}

impl ProcessManager {
    /// Starts the workers. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`StartError`]. A worker that does not start is a dead worker, not an error.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        if std::env::args_os()
            .next()
            .is_some_and(|word| word == words(0).0)
        {
            return Err(StartError::NotAsked);
        }
        let shared = Arc::new(Shared::new(options.workers.len(), options.label.clone()));
        let mut connections = Vec::new();
        let mut ends = Vec::new();
        let mut specs = Vec::new();
        for (index, worker) in options.workers.iter().enumerate() {
            let (ours, its) = UnixStream::pair()?;
            let fd = its.as_raw_fd();
            let mut env = worker.env.clone();
            env.push((WORKER_FD.into(), fd.to_string().into()));
            specs.push(Spec {
                words: worker.words.clone(),
                env,
                directory: worker.directory.clone(),
                inherited: Some(fd),
            });
            connections.push(Connection::new(index, ours, Arc::clone(&shared))?);
            ends.push(its);
        }
        let (channel, its) = UnixStream::pair()?;
        let brief = encode(&Brief { specs })?;
        let guardian = Guardian::start(&options.guardian, &its, &ends)?;
        drop((ends, its));
        shared.lock().guardian = Some(guardian.pid());
        let (asks, asked) = mpsc::unbounded_channel();
        let known = Arc::clone(&shared);
        Monitor::start(&options, known, guardian, channel, brief, asked)?;
        let manager = Self {
            shared,
            options,
            connections,
            asks,
        };
        if let Err(error) = manager.wait_for_start().await {
            let _ = manager.asks.send(Ask::GiveUp);
            manager.wait_for_end().await;
            return Err(error);
        }
        Ok(manager)
    }

    async fn wait_for_start(&self) -> Result<(), StartError> {
        const STEP: Duration = Duration::from_millis(1);
        let started = async {
            loop {
                let is_started = self
                    .shared
                    .lock()
                    .workers
                    .iter()
                    .all(|worker| worker.id.is_some() || worker.death.is_some());
                match (is_started, self.shared.change().has_ended) {
                    (_, true) => return Err(StartError::NoAnswer),
                    (true, false) => return Ok(()),
                    (false, false) => tokio::time::sleep(STEP).await,
                }
            }
        };
        timeout(START_TIMEOUT, started)
            .await
            .unwrap_or(Err(StartError::NoAnswer))
    }

    /// Checks that all workers live: one atomic load, no system call.
    ///
    /// # Errors
    /// [`WorkersDied`]: which, why, and since when.
    pub fn check_workers_alive(&self) -> Result<(), WorkersDied> {
        self.shared.check()
    }

    /// Returns the answer for a health check.
    #[must_use]
    pub fn health_status(&self) -> HealthStatus {
        let mut health = self.shared.health();
        let is_walked = health.way != Way::Ebpf;
        if !is_walked && !self.options.devices.exist() {
            return health;
        }
        let orphans = self.orphans();
        let living: Vec<_> = {
            let inner = self.shared.lock();
            let workers = inner.workers.iter().filter(|worker| worker.death.is_none());
            let workers = workers.filter_map(|worker| worker.id);
            workers
                .chain(orphans.iter().map(|orphan| orphan.id))
                .collect()
        };
        health.gpu = health::gpu_holders(living, &self.options.devices);
        if is_walked {
            health.orphans = orphans.iter().map(Cleaned::who).collect();
        }
        health
    }

    /// Returns the connection of a worker.
    #[must_use]
    pub fn connection(&self, worker: usize) -> Option<&Connection> {
        self.connections.get(worker)
    }

    /// Returns the pids of the workers, as far as they were started.
    #[must_use]
    pub fn pids(&self) -> Vec<Option<u32>> {
        let inner = self.shared.lock();
        let workers = inner.workers.iter();
        workers.map(|worker| worker.id.map(|id| id.pid)).collect()
    }

    /// Returns the guardian's pid.
    #[must_use]
    pub fn guardian(&self) -> Option<u32> {
        self.shared.lock().guardian
    }

    /// Waits until the server should end: a signal asked for it, or the policy says that monitoring
    /// has ended. For axum's `with_graceful_shutdown`.
    pub async fn stop_asked(&self) -> Stop {
        let (policy, workers) = (self.options.policy, self.shared.workers());
        let mut changes = self.shared.changes();
        let change = changes.wait_for(|change| {
            change.stop != Stop::No || change.has_ended || policy.has_ended(change.dead, workers)
        });
        let change = change.await.map(|change| *change);
        change.map_or(Stop::Now, |change| change.stop)
    }

    /// Waits until monitoring has ended by the policy, with everything that the workers have left
    /// killed. The server should exit with [`Finished::code`], which is 1.
    pub async fn monitor_workers(&self) -> Finished {
        let (policy, workers) = (self.options.policy, self.shared.workers());
        let mut changes = self.shared.changes();
        // The workers of a server that was asked to stop are meant to end.
        let ended = |change: &state::Change| {
            change.has_ended || (change.stop == Stop::No && policy.has_ended(change.dead, workers))
        };
        let _ = changes.wait_for(ended).await;
        self.end().await
    }

    /// Ends the workers: the message, [`Options::shutdown_timeout`], SIGTERM,
    /// [`Options::kill_timeout`], and then everything that is left is killed. All workers at the
    /// same time, each step only for those that still live.
    pub async fn shutdown(&self) -> Finished {
        self.shared.ask_to_stop(Stop::Graceful);
        self.send_shutdown().await;
        if !self.all_dead_within(self.options.shutdown_timeout).await {
            for worker in self.alive() {
                let signal = libc::SIGTERM;
                self.ask(Request::Signal {
                    worker,
                    signal,
                    group: false,
                });
            }
            self.all_dead_within(self.options.kill_timeout).await;
        }
        self.end().await
    }

    /// Returns a guard around the server's life.
    #[must_use]
    pub fn lifespan(self: &Arc<Self>) -> Lifespan {
        Lifespan(Arc::clone(self))
    }

    async fn send_shutdown(&self) {
        let message = json!({ "type": "shutdown" });
        let alive = self.alive();
        let mut sending = Vec::new();
        for (index, connection) in self.connections.iter().enumerate() {
            if alive.contains(&index) {
                sending.push(connection.send_within(&message, SHUTDOWN_MESSAGE_TIMEOUT));
            }
        }
        // In parallel: one that hangs does not keep the message from the others.
        let mut sending: Vec<_> = sending.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|context| {
            sending.retain_mut(|send| send.as_mut().poll(context).is_pending());
            if sending.is_empty() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }

    fn alive(&self) -> Vec<usize> {
        let inner = self.shared.lock();
        let workers = inner.workers.iter().enumerate();
        workers
            .filter(|(_, worker)| worker.death.is_none())
            .map(|(index, _)| index)
            .collect()
    }

    async fn all_dead_within(&self, limit: Duration) -> bool {
        let workers = self.shared.workers();
        let mut changes = self.shared.changes();
        let dead = changes.wait_for(|change| {
            change.dead == workers || change.has_ended || change.stop == Stop::Now
        });
        timeout(limit, dead).await.is_ok()
    }

    /// Kills what is left, with the proof, and then the orphans that match.
    async fn end(&self) -> Finished {
        self.ask(Request::End(Order::default()));
        self.wait_for_end().await;
        let mut cleaned = Vec::new();
        // This manager's own are dead by now.
        if self.options.orphan_scope == Scope::DeadServers {
            let patterns = &self.options.orphan_patterns;
            match self.cleanup_orphans(patterns, Scope::DeadServers).await {
                Ok(found) => cleaned = found,
                Err(error) => log::warn!("orphans of dead servers were not cleaned up: {error}"),
            }
        }
        Finished {
            code: u8::from(self.has_failed()),
            rest: self.shared.lock().rest.clone(),
            cleaned,
        }
    }

    /// Returns whether the server should exit with 1. Judged at the end: the signal that explains a
    /// death can come after it.
    fn has_failed(&self) -> bool {
        let change = self.shared.change();
        match change.stop {
            Stop::No | Stop::Now => true,
            Stop::Graceful => {
                let policy = self.options.policy;
                policy.has_ended(change.dead_before_stop, self.shared.workers())
            }
        }
    }

    /// Waits until the guardian is gone, and what it may have left.
    async fn wait_for_end(&self) {
        let mut changes = self.shared.changes();
        let ended = changes.wait_for(|change| change.has_ended);
        let _ = timeout(TREE_KILL_TIMEOUT, ended).await;
    }

    /// Sends the guardian a request. A monitor that does not take it is one whose work is done.
    fn ask(&self, request: Request) {
        let _ = self.asks.send(Ask::Guardian(request));
    }

    /// Has the guardian kill one process below itself and what is below that; returns what became
    /// of them. Nobody was killed where the guardian does not answer.
    async fn kill_below(&self, id: ProcessId) -> Outcome {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Ask::Kill(id, answer));
        let outcome = timeout(TREE_KILL_TIMEOUT, answered).await;
        outcome.ok().and_then(Result::ok).unwrap_or_default()
    }
}

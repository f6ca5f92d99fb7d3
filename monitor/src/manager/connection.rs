//! A worker's connection: JSON messages in frames over a Unix socket pair.
//!
//! A frame is four bytes of length, big-endian, then that many bytes of JSON in UTF-8, at most
//! [`FRAME_BYTES_MAX`]. The worker finds the number of its end in the variable
//! [`WORKER_FD`]. `{"type":"shutdown"}` asks it to end. `examples/worker.py` speaks it
//! with Python's standard library alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::state::{DeadWorker, Shared};
pub use crate::supervise::frame::FRAME_BYTES_MAX;
use crate::supervise::frame::{FrameError, Frames};
use crate::supervise::message::encode;

/// The variable that tells a worker the number of its descriptor.
pub const WORKER_FD: &str = "LIFEMON_WORKER_FD";

/// How long a message may take until the worker's side has taken it.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What a dead worker has sent may be read this long after its death: processes that it left may
/// hold its end open.
const TRAILING: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 64 << 10;

/// Why no message came, or none was sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectionError {
    /// The worker is dead, or has closed its end.
    #[error("Worker process died (pipe closed)")]
    WorkerDead(Option<Box<DeadWorker>>),
    /// What came is no frame, or none that is allowed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came is not JSON.
    #[error("a message is not JSON: {0}")]
    NotJson(String),
    /// The worker does not take what is sent.
    #[error("the worker has not taken a message in {SEND_TIMEOUT:?}")]
    Stuck,
    /// Anything else.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl ConnectionError {
    /// One word for it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::WorkerDead(_) => "worker_dead",
            Self::Frame(FrameError::TooLarge { .. }) => "too_large",
            Self::Frame(FrameError::Truncated { .. }) => "truncated",
            Self::NotJson(_) => "not_json",
            Self::Stuck => "stuck",
            Self::Failed(_) => "failed",
        }
    }

    /// The error as a message, as the Python module hands it on.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut value = json!({ "error": self.to_string(), "kind": self.kind() });
        if let Self::WorkerDead(Some(dead)) = self {
            value["cause"] = dead.cause.as_str().into();
            value["worker"] = dead.index.into();
        }
        value
    }
}

#[derive(Debug)]
struct Reader {
    half: OwnedReadHalf,
    frames: Frames,
}

/// The server's end.
#[derive(Debug)]
pub struct Connection {
    index: usize,
    shared: Arc<Shared>,
    reader: Mutex<Reader>,
    writer: Mutex<OwnedWriteHalf>,
    /// A message was cut off on the way: what followed it would not be understood.
    is_spoilt: AtomicBool,
}

impl Connection {
    pub(super) fn new(
        index: usize,
        stream: std::os::unix::net::UnixStream,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (read, write) = tokio::net::UnixStream::from_std(stream)?.into_split();
        Ok(Self {
            index,
            shared,
            reader: Mutex::new(Reader {
                half: read,
                frames: Frames::default(),
            }),
            writer: Mutex::new(write),
            is_spoilt: AtomicBool::new(false),
        })
    }

    /// Sends one message. Never waits longer than [`SEND_TIMEOUT`] for the worker.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn send(&self, message: &impl Serialize) -> Result<(), ConnectionError> {
        self.send_within(message, SEND_TIMEOUT).await
    }

    pub(super) async fn send_within(
        &self,
        message: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ConnectionError> {
        let bytes = encode(message).map_err(|error| match error.downcast::<FrameError>() {
            Ok(error) => ConnectionError::Frame(error),
            Err(error) => ConnectionError::Failed(error.to_string()),
        })?;
        let sending = async {
            let mut writer = self.writer.lock().await;
            if self.is_spoilt.swap(true, Ordering::AcqRel) {
                return Err(ConnectionError::Stuck);
            }
            writer
                .write_all(&bytes)
                .await
                .map_err(|error| self.failed(&error))?;
            self.is_spoilt.store(false, Ordering::Release);
            Ok(())
        };
        let sent = timeout(limit, sending).await;
        sent.unwrap_or(Err(ConnectionError::Stuck))
    }

    /// The next message. Never hangs on a dead worker. May be dropped and called again.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn recv(&self) -> Result<Value, ConnectionError> {
        let mut reader = self.reader.lock().await;
        let mut changes = self.shared.changes();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(body) = reader.frames.take()? {
                let value = serde_json::from_slice(&body);
                return value.map_err(|error| ConnectionError::NotJson(error.to_string()));
            }
            let death = self.death();
            let limit = if death.is_some() {
                TRAILING
            } else {
                Duration::MAX
            };
            let read = tokio::select! {
                read = timeout(limit, reader.half.read(&mut buffer)) => read,
                _ = changes.changed(), if death.is_none() => continue,
            };
            match read {
                Ok(Ok(0)) => {
                    reader.frames.finish()?;
                    return Err(self.dead().await);
                }
                Ok(Ok(count)) => reader.frames.push(&buffer[..count]),
                Ok(Err(error)) => return Err(self.failed(&error)),
                Err(_) => return Err(ConnectionError::WorkerDead(death.map(Box::new))),
            }
        }
    }

    /// The next message, or the error as a message: `{"error":…,"kind":…}`.
    pub async fn safe_recv(&self) -> Value {
        match self.recv().await {
            Ok(value) => value,
            Err(error) => error.to_value(),
        }
    }

    fn death(&self) -> Option<DeadWorker> {
        let inner = self.shared.lock();
        inner.workers.get(self.index)?.death.clone()
    }

    /// The end of the stream can be seen before the death is known.
    async fn dead(&self) -> ConnectionError {
        let mut changes = self.shared.changes();
        // The look is not inside the channel's lock: whoever changes something has the other one.
        let known = async { while self.death().is_none() && changes.changed().await.is_ok() {} };
        let _ = timeout(TRAILING, known).await;
        ConnectionError::WorkerDead(self.death().map(Box::new))
    }

    fn failed(&self, error: &io::Error) -> ConnectionError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                ConnectionError::WorkerDead(self.death().map(Box::new))
            }
            _ => ConnectionError::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use super::super::state::Report;
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(future)
    }

    /// Workers that close their ends at the same time, and are found dead meanwhile.
    fn die_together(workers: usize) {
        let shared = Arc::new(Shared::new(workers, "vLLM".to_owned()));
        let known = Arc::clone(&shared);
        let dying = thread::spawn(move || {
            for worker in 0..workers {
                known.bury(worker, 5, Report::Fact("a test"));
            }
        });
        run(async {
            let mut waiting = tokio::task::JoinSet::new();
            for worker in 0..workers {
                let (ours, _) = UnixStream::pair().unwrap();
                let connection = Connection::new(worker, ours, Arc::clone(&shared)).unwrap();
                waiting.spawn(async move { connection.recv().await });
            }
            for error in waiting.join_all().await {
                assert_eq!(error.unwrap_err().kind(), "worker_dead");
            }
        });
        dying.join().unwrap();
    }

    #[test]
    fn workers_that_die_together_block_nobody() {
        const ROUNDS: usize = 300;
        const LIMIT: Duration = Duration::from_secs(60);
        let (done, is_done) = mpsc::channel();
        // A thread that hangs is left behind, and the test fails.
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                die_together(16);
            }
            let _ = done.send(());
        });
        assert!(is_done.recv_timeout(LIMIT).is_ok());
    }
}

//! A worker's connection: JSON messages in frames over a Unix socket pair.
//!
//! A frame is four bytes of length, big-endian, then that many bytes of JSON in UTF-8, at most
//! [`FRAME_BYTES_MAX`]. The worker finds the number of its end in the variable
//! [`WORKER_FD`]. `{"type":"shutdown"}` asks it to end. `examples/worker.py` speaks it
//! with Python's standard library alone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::health::DeadWorker;
use super::state::Shared;
pub use crate::supervise::frame::FRAME_BYTES_MAX;
use crate::supervise::frame::{FrameError, Frames, MessageError};
use crate::supervise::message::encode;

/// The variable that holds the number of a worker's descriptor.
pub const WORKER_FD: &str = "LIFEMON_WORKER_FD";

/// Longest time until the worker's side has accepted a message.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after a worker's death in which its messages may still be read: processes that it left may
/// hold its end open.
const TRAILING: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 64 << 10;

/// The reason why no message was received or sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The worker is dead, or has closed its end.
    #[error("Worker process died (pipe closed)")]
    WorkerDead(Option<Box<DeadWorker>>),
    /// The bytes received are no frame, or one that is not allowed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message received is not JSON.
    #[error("a message is not JSON: {0}")]
    NotJson(String),
    /// The worker does not take what is sent.
    #[error("the worker has not taken a message in {SEND_TIMEOUT:?}")]
    Stuck,
    /// Anything else.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl From<MessageError> for ConnectionError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Frame(error) => Self::Frame(error),
            MessageError::NotUnderstood(error) => Self::NotJson(error.to_string()),
        }
    }
}

impl ConnectionError {
    /// Returns one word for it.
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

    /// Returns the error as a message, as the Python module hands it on.
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

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    /// The message that was begun last. Who sends the next one sends the rest of it first: what
    /// followed half a message would not be understood.
    begun: Vec<u8>,
    /// Number of bytes of it that were sent.
    sent: usize,
}

impl Writer {
    /// Sends the rest and then this. May be dropped: then all of it goes out with the next message,
    /// or nothing of it ever.
    async fn send(&mut self, message: Vec<u8>) -> io::Result<()> {
        self.flush().await?;
        self.sent = self.half.write(&message).await?;
        self.begun = message;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.begun.len() {
            self.sent += self.half.write(&self.begun[self.sent..]).await?;
        }
        self.begun = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

/// The server's end.
#[derive(Debug)]
pub struct Connection {
    index: usize,
    shared: Arc<Shared>,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
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
            writer: Mutex::new(Writer {
                half: write,
                begun: Vec::new(),
                sent: 0,
            }),
        })
    }

    /// Sends one message. Never waits longer than [`SEND_TIMEOUT`] for the worker. May be dropped.
    /// A message that was begun by then, or when the time was over, reaches the worker all the same
    /// with the next one.
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
            let sent = writer.send(bytes).await;
            sent.map_err(|error| self.failed(&error))
        };
        let sent = timeout(limit, sending).await;
        sent.unwrap_or(Err(ConnectionError::Stuck))
    }

    /// Returns the next message. Never hangs on a dead worker. May be dropped and called again.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn recv(&self) -> Result<Value, ConnectionError> {
        let mut reader = self.reader.lock().await;
        let mut changes = self.shared.changes();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(message) = reader.frames.messages().next() {
                return message.map_err(ConnectionError::from);
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

    /// Returns the next message, or the error as a message: `{"error":…,"kind":…}`.
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

    /// Returns the error for the end of the stream, which can be seen before the death is known.
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
        let runtime = crate::sys::runtime::current_thread();
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
    fn a_message_that_was_cut_off_is_sent_to_its_end_before_the_next() {
        let shared = Arc::new(Shared::new(1, "vLLM".to_owned()));
        let large = "x".repeat(4 << 20);
        let taken = run(async {
            let (ours, mut its) = UnixStream::pair().unwrap();
            let connection = Connection::new(0, ours, shared).unwrap();
            let sending = connection.send(&large);
            assert!(timeout(Duration::from_millis(50), sending).await.is_err());
            // Nothing of this one is sent, so it never will be.
            let sending = connection.send(&"lost");
            assert!(timeout(Duration::from_millis(50), sending).await.is_err());
            let reading = thread::spawn(move || {
                let mut frames = Frames::default();
                while frames.read_from(&mut its).unwrap() {}
                std::iter::from_fn(move || frames.take().unwrap()).collect::<Vec<_>>()
            });
            connection.send(&"next").await.unwrap();
            drop(connection);
            reading.join().unwrap()
        });
        assert_eq!(taken.len(), 2);
        assert_eq!(taken[0].len(), large.len() + 2);
        assert_eq!(taken[1], b"\"next\"");
    }

    #[test]
    fn workers_that_die_together_block_nobody() {
        const ROUNDS: usize = 300;
        const LIMIT: Duration = Duration::from_mins(1);
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

//! A connection on which a request must arrive in time: from its first byte to its last. Between
//! requests it may be silent for ever, because a guard can hang on it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};

/// The time for a request to arrive.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);
/// The time for a reader to take something of an answer, but for a stream of events.
pub(super) const TAKING: Duration = Duration::from_secs(30);

/// What the connection and its requests know of each other.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// A request has begun and is not whole.
    is_arriving: AtomicBool,
    /// The answer is a stream, which may be read slowly.
    is_stream: AtomicBool,
}

impl Pace {
    /// Says that the request is whole.
    pub(super) fn has_arrived(&self) {
        self.is_arriving.store(false, Ordering::Relaxed);
    }

    /// Says whether the answer is a stream.
    pub(super) fn answers_with_stream(&self, is_stream: bool) {
        self.is_stream.store(is_stream, Ordering::Relaxed);
    }
}

/// A connection with a pace.
#[derive(Debug)]
pub(super) struct Paced {
    stream: UnixStream,
    pace: Arc<Pace>,
    arrival: Pin<Box<Sleep>>,
    taking: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(stream: UnixStream, pace: Arc<Pace>) -> Self {
        Self {
            stream,
            pace,
            arrival: Box::pin(sleep(ARRIVAL)),
            taking: None,
        }
    }

    /// Fails a write that has waited for too long.
    fn paced<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || self.pace.is_stream.load(Ordering::Relaxed) {
            self.taking = None;
            return written;
        }
        let taking = self.taking.get_or_insert_with(|| Box::pin(sleep(TAKING)));
        match taking.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            let has_read = buffer.filled().len() > before;
            if has_read && !self.pace.is_arriving.swap(true, Ordering::Relaxed) {
                self.arrival.as_mut().reset(Instant::now() + ARRIVAL);
            }
        }
        // Also where there is always another byte.
        if self.pace.is_arriving.load(Ordering::Relaxed)
            && self.arrival.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.paced(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

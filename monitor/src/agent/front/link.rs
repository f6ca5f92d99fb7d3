//! The front's end of the socket to the core: questions go out, parts of answers come in, each
//! with the number of its question.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::call::{Call, Message, Part};
use super::super::trim::Trim;
use super::super::wire;

/// The link to the core.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<Inner>);

/// Where the parts of each answer go.
type Waiting = HashMap<u64, UnboundedSender<(Part, Vec<u8>)>>;

#[derive(Debug)]
struct Inner {
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    out: UnboundedSender<Message>,
    trim: Trim,
}

impl Link {
    /// Begins to send what is asked.
    pub(super) fn start(mut to: OwnedWriteHalf) -> Self {
        let (out, mut messages) = unbounded_channel::<Message>();
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                if wire::write(&mut to, &message, &[]).await.is_err() {
                    return;
                }
            }
        });
        Self::with(out)
    }

    /// Makes a link whose messages go there.
    pub(super) fn with(out: UnboundedSender<Message>) -> Self {
        Self(Arc::new(Inner {
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            out,
            trim: Trim::default(),
        }))
    }

    /// Hands the parts that come to whoever waits for them, until the core ends.
    pub(super) async fn listen(&self, mut from: OwnedReadHalf) -> io::Result<()> {
        while let Some((part, body)) = wire::read::<Part>(&mut from, wire::BODY_BYTES_MAX).await? {
            let mut waiting = self.waiting();
            if part.is_last {
                if let Some(to) = waiting.remove(&part.number) {
                    let _ = to.send((part, body));
                    self.0.trim.note();
                }
            } else if let Some(to) = waiting.get(&part.number) {
                let _ = to.send((part, body));
            }
        }
        Ok(())
    }

    /// Asks in the name of a connection.
    pub(super) fn ask(&self, connection: u64, call: Call) -> Asked {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (to, parts) = unbounded_channel();
        self.waiting().insert(number, to);
        let call = Box::new(call);
        self.send(Message::Ask {
            connection,
            number,
            call,
        });
        Asked {
            number,
            parts,
            link: self.clone(),
            first: None,
        }
    }

    /// Gives memory back, for as long as this is waited for: first what the start has left.
    pub(super) async fn trims(&self) {
        self.0.trim.note();
        self.0.trim.run().await;
    }

    /// Says that nothing more will be asked in the name of a connection.
    pub(super) fn done(&self, connection: u64) {
        self.0.trim.note();
        self.send(Message::Done { connection });
    }

    fn send(&self, message: Message) {
        let _ = self.0.out.send(message);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that is being answered. Dropping it says that nobody waits any more.
#[derive(Debug)]
pub(super) struct Asked {
    number: u64,
    parts: UnboundedReceiver<(Part, Vec<u8>)>,
    link: Link,
    first: Option<Vec<u8>>,
}

impl Asked {
    /// Waits for the next part; `None` when the core has ended.
    pub(super) async fn next(&mut self) -> Option<(Part, Vec<u8>)> {
        self.parts.recv().await
    }

    /// Turns it into a stream that begins with a part that was read.
    pub(super) fn beginning_with(mut self, body: Vec<u8>) -> Self {
        self.first = Some(body);
        self
    }

    fn passed(&self, bytes: usize) {
        let (number, bytes) = (self.number, bytes as u64);
        self.link.send(Message::Passed { number, bytes });
    }
}

impl Stream for Asked {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self
                .parts
                .poll_recv(context)
                .map(|part| part.map(|(_, body)| body)),
        };
        next.map(|body| {
            let body = body?;
            self.passed(body.len());
            Some(Ok(body.into()))
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.link.waiting().remove(&self.number).is_some() {
            let number = self.number;
            self.link.send(Message::Forget { number });
        }
    }
}

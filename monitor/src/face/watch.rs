//! A watched tree as a stream of what happens in it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use super::Root;
use crate::kernel::{Error, LoadOptions, Tracker, WatchOptions};
use crate::loss::Loss;
use crate::session::{Session, Start, Update};
use crate::watch::Happening;

/// A report of a watched tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Something happened to a process of the tree.
    Happening(Box<Happening>),
    /// Something was lost, or what was lost has been recovered.
    Lost(Lost),
    /// None of the tree can run again. The last `Gone` may follow.
    Extinct,
}

/// Something that was lost, or has been recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lost {
    /// The kind of loss.
    pub loss: Loss,
    /// The amount since it was last reported.
    pub count: u64,
    /// True if the comparison with the kernel's map has recovered it.
    pub recovered: bool,
    /// True if answers are complete from here on.
    pub complete: bool,
}

/// The wait of a session for news, which gives it back with them.
type Waiting = Pin<Box<dyn Future<Output = (Session, Result<Vec<Update>, Error>)> + Send>>;

/// A watched tree, live: a [`Stream`] of [`Event`]s, which ends when the tree is extinct and the
/// last of it is gone.
///
/// Needs a tokio runtime with I/O and time. While nothing happens, nothing wakes it for longer than
/// a tick of 40 ms. Dropping it ends the watching.
///
/// ```no_run
/// use lifemon::{Error, Event, Watch, What};
///
/// async fn follow(pid: u32) -> Result<(), Error> {
///     let mut watch = Watch::start(pid)?;
///     println!("{} alive", watch.begin().members.len());
///     while let Some(event) = watch.next().await {
///         match event? {
///             Event::Happening(happening) => {
///                 if let What::Exit { death: Some(death), orphans } = &happening.what {
///                     println!("{} died: {death}", happening.process.id.pid);
///                     println!("it has left {} behind", orphans.len());
///                 }
///             }
///             Event::Lost(lost) => eprintln!("{}: {}", lost.count, lost.loss.advice()),
///             _ => {}
///         }
///     }
///     Ok(())
/// }
/// ```
pub struct Watch {
    begin: Start,
    /// `None` once it has ended.
    waiting: Option<Waiting>,
    events: VecDeque<Event>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("root", &self.begin.root.id)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Begins to watch the tree of `root`, dead or alive.
    ///
    /// # Errors
    /// [`Error`]: what is missing here, that there is no such process, or that too many trees are
    /// watched already.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub fn start(root: impl Into<Root>) -> Result<Self, Error> {
        let tracker = Tracker::open_or_load(&LoadOptions::default())?;
        let root = root.into().find(&tracker.snapshot()?)?;
        let (session, begin) = Session::start(tracker, root, &WatchOptions::default())?;
        Ok(Self {
            begin,
            waiting: Some(wait(session)),
            events: VecDeque::new(),
        })
    }

    /// Returns the tree as it was when watching began.
    #[must_use]
    pub const fn begin(&self) -> &Start {
        &self.begin
    }

    /// Waits for the next event, as `StreamExt::next` does; `None` when nothing more will come.
    /// Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

/// Waits for news of the session.
fn wait(mut session: Session) -> Waiting {
    Box::pin(async move {
        let news = session.next().await;
        (session, news)
    })
}

impl Stream for Watch {
    type Item = Result<Event, Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Event, Error>>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(waiting) = &mut self.waiting else {
                return Poll::Ready(None);
            };
            let (session, news) = ready!(waiting.as_mut().poll(context));
            self.waiting = None;
            let news = match news {
                Ok(news) => news,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let has_ended = news.iter().any(|update| matches!(update, Update::End));
            self.events.extend(news.into_iter().filter_map(event));
            self.waiting = (!has_ended).then(|| wait(session));
        }
    }
}

/// Returns an update as an event; `None` for the end, which the stream's own end is.
fn event(update: Update) -> Option<Event> {
    Some(match update {
        Update::Happening(happening) => Event::Happening(happening),
        Update::Lost {
            loss,
            count,
            recovered,
            complete,
        } => Event::Lost(Lost {
            loss,
            count,
            recovered,
            complete,
        }),
        Update::Extinct => Event::Extinct,
        Update::End => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessId;
    use crate::process::{Death, Process, Who};
    use crate::watch::What;

    #[test]
    fn an_event_comes_back_as_it_was() {
        let id = ProcessId::new(77, 5);
        let orphan = Who { id, name: None };
        let happening = Happening {
            at_ns: Some(9),
            process: Process::unknown(id),
            creator: None,
            what: What::Exit {
                death: Some(Death::from_wait_status(9)),
                orphans: vec![orphan],
            },
            resynced: false,
        };
        let lost = Lost {
            loss: Loss::RingFull,
            count: 3,
            recovered: true,
            complete: true,
        };
        let happening = Event::Happening(Box::new(happening));
        for event in [happening, Event::Lost(lost), Event::Extinct] {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }
}

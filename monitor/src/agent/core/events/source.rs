//! The source of events: follows a tree on a thread of its own, with a kernel ring of its own, for
//! all who watch it. Each of them gets the tree as it is when it joins, every event from there on,
//! and a summary when it leaves or nothing of the tree is left.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{mpsc, oneshot};

use crate::ProcessId;
use crate::kernel::{LoadOptions, Tracker, WatchOptions, clock};
use crate::loss::Loss;
use crate::report::stream::{Printer, Summary};
use crate::session::{Session, Start, Update};
use crate::sys::runtime::current_thread;
use crate::watch::Totals;

use super::buffer::Whose;
use crate::agent::core::Core;
use crate::agent::limits::Taken;
use crate::agent::problem::{Code, Problem};

/// A request to a source.
pub(super) enum Command {
    /// A watch begins.
    Join {
        whose: Whose,
        /// Gets the number of the last event before its first.
        begun: oneshot::Sender<Result<u64, Problem>>,
    },
    /// A watch ends.
    Leave { watch: Arc<str> },
    /// Gets the tree as it is now.
    Describe(oneshot::Sender<String>),
}

/// Where a source is asked. It ends with the last of these.
pub(super) type Commands = UnboundedSender<Command>;

/// Starts to follow a tree, in a slot that was taken for it.
pub(super) fn start(core: &Arc<Core>, root: ProcessId, slot: Taken) -> Result<Commands, Problem> {
    let (commands, asked) = unbounded_channel();
    let (core, own) = (Arc::clone(core), commands.downgrade());
    let run = move || {
        if let Ok(runtime) = current_thread() {
            runtime.block_on(follow(&core, root, &own, asked));
        }
        drop(slot);
    };
    let started = std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(run);
    started.map_err(|error| Problem::new(Code::Unavailable, error.to_string()))?;
    Ok(commands)
}

/// Follows a tree until it is extinct, or nobody wants to know any more.
async fn follow(
    core: &Arc<Core>,
    root: ProcessId,
    own: &mpsc::WeakUnboundedSender<Command>,
    mut asked: UnboundedReceiver<Command>,
) {
    let started = Tracker::open_or_load(&LoadOptions::default())
        .and_then(|tracker| Session::start(tracker, root, &WatchOptions::default()));
    let (source, end) = match started {
        Ok((session, start)) => {
            let mut source = Source::new(core, root, session, start);
            let end = source.serve(&mut asked).await;
            (Some(source), end)
        }
        Err(error) => (None, error.into()),
    };
    // The watches are forgotten before their end is told: a stream that still finds its watch gets
    // to know of the end, and one that does not find it waits for nothing.
    core.events().forget(own);
    if let Some(mut source) = source {
        for watch in source.watches() {
            source.leave(&watch);
        }
    }
    // Those who have come too late for it.
    asked.close();
    while let Some(command) = asked.recv().await {
        if let Command::Join { begun, .. } = command {
            let _ = begun.send(Err(end.clone()));
        }
    }
}

/// The counts when a watch began: what was before is none of its summary.
struct Base {
    totals: Totals,
    alive: u64,
    lost_events: u64,
}

struct Source<'a> {
    core: &'a Core,
    root: ProcessId,
    session: Session,
    /// The tree when watching began, for the first who joins.
    start: Option<Start>,
    printer: Printer,
    whose: Arc<[Whose]>,
    bases: HashMap<Arc<str>, Base>,
    /// True once the maps could not be read any more.
    has_failed: bool,
}

impl<'a> Source<'a> {
    fn new(core: &'a Core, root: ProcessId, session: Session, start: Start) -> Self {
        Self {
            core,
            root,
            session,
            start: Some(start),
            printer: Printer::json(root),
            whose: Arc::default(),
            bases: HashMap::new(),
            has_failed: false,
        }
    }

    /// Tells what happens, until that is at an end; returns why.
    async fn serve(&mut self, asked: &mut UnboundedReceiver<Command>) -> Problem {
        loop {
            tokio::select! {
                command = asked.recv() => match command {
                    Some(command) => self.hear(command),
                    None => return Problem::new(Code::Unavailable, "nobody watches any more"),
                },
                updates = self.session.next() => {
                    let updates = match updates {
                        Ok(updates) => updates,
                        Err(error) => {
                            self.has_failed = true;
                            return error.into();
                        }
                    };
                    for update in updates {
                        self.tell(&update);
                        if matches!(update, Update::End) {
                            let detail = "no process of the tree is left";
                            return Problem::new(Code::NoSuchProcess, detail);
                        }
                    }
                }
            }
        }
    }

    fn tell(&mut self, update: &Update) {
        // From here on the tree is another one.
        self.start = None;
        let losses = self.session.standing_losses();
        let text = self.printer.update(update, losses, None);
        if !self.whose.is_empty() {
            self.core.events().push(&self.whose, self.root, &text);
        }
    }

    /// Tells what has happened until now and waits for the next tick.
    fn tell_rest(&mut self) {
        match self.session.rest() {
            Ok(updates) => updates.iter().for_each(|update| self.tell(update)),
            // The next look fails as well, and ends all that is told.
            Err(error) => log::warn!("the last events are not known: {error}"),
        }
    }

    fn hear(&mut self, command: Command) {
        match command {
            Command::Join { whose, begun } => {
                let _ = begun.send(self.join(whose));
            }
            Command::Leave { watch } => {
                self.tell_rest();
                self.leave(&watch);
            }
            Command::Describe(answer) => {
                if let Ok(text) = self.attached() {
                    let _ = answer.send(text);
                }
            }
        }
    }

    /// Returns the line that opens a stream about the tree as it is now.
    fn attached(&mut self) -> Result<String, Problem> {
        let start = match self.start.take() {
            Some(start) => start,
            None => self.session.now()?,
        };
        let is_pinned = self.session.watcher().tracker().is_pinned();
        Ok(Printer::json(self.root).attached(&start, is_pinned))
    }

    /// Tells one more from here on; returns the number of the last event before.
    fn join(&mut self, whose: Whose) -> Result<u64, Problem> {
        let attached = self.attached()?;
        let base = Base {
            totals: self.session.watch().totals().clone(),
            alive: self.session.watch().living() as u64,
            lost_events: self.session.watcher().counters().lost_events,
        };
        self.bases.insert(Arc::clone(&whose.watch), base);
        let only = Arc::from([whose.clone()]);
        let before = self.core.events().push(&only, self.root, &attached);
        self.whose = self.whose.iter().cloned().chain([whose]).collect();
        Ok(before)
    }

    fn watches(&self) -> Vec<Arc<str>> {
        let watches = self.whose.iter().map(|whose| Arc::clone(&whose.watch));
        watches.collect()
    }

    /// Tells one no more, after a summary of its time.
    fn leave(&mut self, watch: &str) {
        let (left, others): (Vec<_>, Vec<_>) = {
            let whose = self.whose.iter().cloned();
            whose.partition(|whose| *whose.watch == *watch)
        };
        self.whose = others.into();
        if let Some(base) = self.bases.remove(watch) {
            let text = self.detached(&base);
            self.core.events().push(&left.into(), self.root, &text);
        }
    }

    fn detached(&self, base: &Base) -> String {
        let counters = self.session.watcher().counters();
        let mut totals = self.session.watch().totals().clone();
        totals.seen = totals.seen - base.totals.seen + base.alive;
        totals.exits_unknown -= base.totals.exits_unknown;
        totals.resynced -= base.totals.resynced;
        for (cause, count) in &base.totals.exits {
            totals
                .exits
                .entry(*cause)
                .and_modify(|exits| *exits -= count);
        }
        totals.exits.retain(|_, count| *count > 0);
        let mut losses = self.session.standing_losses().to_vec();
        if self.has_failed && !losses.contains(&Loss::SwitchedOff) {
            losses.push(Loss::SwitchedOff);
        }
        Printer::json(self.root).detached(&Summary {
            at_ns: clock::boot_ns(),
            totals: &totals,
            alive: counters.live,
            orphans: self.session.watch().orphans(),
            lost_events: counters.lost_events - base.lost_events,
            losses: &losses,
        })
    }
}

//! The stream about a watched tree: a snapshot, one line for each thing that happens, a summary.
//! `text` for people, `json` for scripts; a [`Printer`] is one of both.

mod json;
#[cfg(feature = "agent")]
mod retold;
mod text;

use schemars::JsonSchema;
use serde::Serialize;

use crate::ProcessId;
use crate::gpu::release::News;
use crate::kernel::clock::{self, WallClock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Process, Who};
use crate::session::{Start, Update};
use crate::watch::{Happening, Totals, What};
pub(crate) use json::Line as LineJson;
use json::Stream;
#[cfg(feature = "agent")]
pub(crate) use retold::Retold;
use text::Text;

/// The root of the tree of who has sent a signal.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SenderRoot {
    /// The process.
    #[serde(flatten)]
    pub who: Who,
    /// True if it lives.
    pub alive: bool,
}

/// The closing summary.
#[derive(Debug, Clone)]
pub struct Summary<'a> {
    /// The time, in ns since boot.
    pub at_ns: u64,
    /// Counts of the model.
    pub totals: &'a Totals,
    /// Members alive, from the kernel's counter.
    pub alive: u64,
    /// Living members whose creator is dead.
    pub orphans: Vec<Who>,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// The losses that make the answer incomplete.
    pub losses: &'a [Loss],
}

/// Turns updates of one tree into lines.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    /// The kinds of events that are printed; all where there is none.
    only: Vec<&'static str>,
}

/// The words of events that can be chosen.
pub const EVENTS: [&str; 9] = [
    "fork", "exec", "signal", "exit", "gone", "orphaned", "released", "held", "extinct",
];

#[derive(Debug)]
enum Format {
    Json(Stream),
    Text(Text),
}

impl Printer {
    const fn new(format: Format) -> Self {
        Self {
            format,
            only: Vec::new(),
        }
    }

    /// Prints of the events those of these kinds alone; all of them where none is given. What
    /// begins and ends the stream, and what was lost, is printed always.
    #[must_use]
    pub fn only(mut self, events: &[&'static str]) -> Self {
        self.only = events.to_vec();
        self
    }

    fn prints(&self, event: &str) -> bool {
        self.only.is_empty() || self.only.contains(&event)
    }

    /// Begins a stream of JSON objects about the tree of `root`.
    #[must_use]
    pub fn json(root: ProcessId) -> Self {
        Self::new(Format::Json(Stream::new(WallClock::now(), root)))
    }

    /// Begins a stream of lines for people, with or without colour.
    #[must_use]
    pub fn text(colour: bool) -> Self {
        Self::new(Format::Text(Text::new(WallClock::now(), colour)))
    }

    /// Writes the snapshot that opens the stream.
    pub fn attached(&mut self, start: &Start, is_pinned: bool) -> String {
        match &mut self.format {
            Format::Json(stream) => stream.attached(start, clock::boot_ns(), is_pinned),
            Format::Text(text) => text.attached(start, is_pinned),
        }
    }

    /// Writes one update. `losses` are those that stand after it; `sender_root` is the root of the
    /// tree of who sent a signal.
    pub fn update(
        &mut self,
        update: &Update,
        losses: &[Loss],
        sender_root: Option<&SenderRoot>,
    ) -> String {
        let is_wanted = match update {
            Update::Happening(happening) => self.prints(word(&happening.what)),
            Update::Extinct => self.prints("extinct"),
            Update::Lost { .. } | Update::End => true,
        };
        if !is_wanted {
            return String::new();
        }
        let now = clock::boot_ns();
        match (&mut self.format, update) {
            (Format::Json(stream), Update::Happening(happening)) => {
                stream.happening(happening, parent_of_orphan(happening), sender_root)
            }
            (Format::Text(text), Update::Happening(happening)) => {
                text.happening(happening, parent_of_orphan(happening), sender_root)
            }
            (
                Format::Json(stream),
                Update::Lost {
                    loss,
                    count,
                    recovered,
                    complete,
                },
            ) => stream.lost(now, *loss, *count, *recovered, *complete),
            (
                Format::Text(text),
                Update::Lost {
                    loss,
                    count,
                    recovered,
                    ..
                },
            ) => text.lost(now, *loss, *count, *recovered),
            (Format::Json(stream), Update::Extinct) => stream.extinct(now, losses.is_empty()),
            (Format::Text(text), Update::Extinct) => text.extinct(now, losses.is_empty()),
            (_, Update::End) => String::new(),
        }
    }

    /// Writes what became of the GPU memory of a process that died.
    pub fn news(&mut self, news: &News, of: Option<&Process>) -> String {
        let now_ns = clock::boot_ns();
        let (is_wanted, loss) = match news {
            News::Released { .. } => (self.prints("released"), None),
            News::StillHeld { .. } => (self.prints("held"), None),
            News::Hung => (true, Some(Loss::DriverHung)),
            News::Failed(_) => (true, Some(Loss::DriverFailed)),
        };
        if !is_wanted {
            return String::new();
        }
        match (&mut self.format, loss) {
            (Format::Json(stream), Some(loss)) => stream.lost(now_ns, loss, 0, false, false),
            (Format::Text(text), Some(loss)) => text.lost(now_ns, loss, 0, false),
            (Format::Json(stream), None) => stream.news(news, of, now_ns),
            (Format::Text(text), None) => text.news(news, of, now_ns),
        }
    }

    /// Writes the closing summary.
    pub fn detached(&mut self, summary: &Summary<'_>) -> String {
        match &mut self.format {
            Format::Json(stream) => stream.detached(summary),
            Format::Text(text) => text.detached(summary),
        }
    }
}

/// Returns the parent that `/proc` shows for an orphan, its start to a clock tick, which is the new
/// one: its creator is gone.
fn parent_of_orphan(happening: &Happening) -> Option<Who> {
    match happening.what {
        What::Orphaned { .. } => {
            let pid = proc::parent(happening.process.id)?;
            Some(Who {
                id: proc::identify(pid)?,
                name: proc::name(pid),
            })
        }
        _ => None,
    }
}

/// Returns the word of the event.
const fn word(what: &What) -> &'static str {
    match what {
        What::Fork => "fork",
        What::Exec => "exec",
        What::Signal { .. } => "signal",
        What::Exit { .. } => "exit",
        What::Gone { .. } => "gone",
        What::Orphaned { .. } => "orphaned",
    }
}

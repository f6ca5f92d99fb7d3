//! The stream about a watched tree: a snapshot, one line for each thing that happens, a summary.
//! `text` for people, `json` for scripts; a [`Printer`] is one of both.

mod json;
mod text;

use crate::ProcessId;
use crate::gpu::release::News;
use crate::kernel::clock::{self, WallClock};
use crate::loss::Loss;
use crate::proc;
use crate::process::{Process, Who};
use crate::session::{Start, Update};
use crate::watch::{Happening, Totals, What};
use json::Stream;
use text::Text;

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
pub struct Printer(Format);

#[derive(Debug)]
enum Format {
    Json(Stream),
    Text(Text),
}

impl Printer {
    /// Begins a stream of JSON objects about the tree of `root`.
    #[must_use]
    pub fn json(root: ProcessId) -> Self {
        Self(Format::Json(Stream::new(WallClock::now(), root)))
    }

    /// Begins a stream of lines for people, with or without colour.
    #[must_use]
    pub fn text(colour: bool) -> Self {
        Self(Format::Text(Text::new(WallClock::now(), colour)))
    }

    /// Writes the snapshot that opens the stream.
    pub fn attached(&mut self, start: &Start, is_pinned: bool) -> String {
        match &mut self.0 {
            Format::Json(stream) => stream.attached(start, clock::boot_ns(), is_pinned),
            Format::Text(text) => text.attached(start, is_pinned),
        }
    }

    /// Writes one update. `losses` are those that stand after it.
    pub fn update(&mut self, update: &Update, losses: &[Loss]) -> String {
        let now = clock::boot_ns();
        match (&mut self.0, update) {
            (Format::Json(stream), Update::Happening(happening)) => {
                stream.happening(happening, parent_of_orphan(happening))
            }
            (Format::Text(text), Update::Happening(happening)) => {
                text.happening(happening, parent_of_orphan(happening))
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
        match (&mut self.0, news) {
            (Format::Json(stream), News::Hung) => {
                stream.lost(clock::boot_ns(), Loss::DriverHung, 0, false, false)
            }
            (Format::Text(text), News::Hung) => {
                text.lost(clock::boot_ns(), Loss::DriverHung, 0, false)
            }
            (Format::Json(stream), news) => stream.news(news, of, clock::boot_ns()),
            (Format::Text(text), news) => text.news(news, of, clock::boot_ns()),
        }
    }

    /// Writes the closing summary.
    pub fn detached(&mut self, summary: &Summary<'_>) -> String {
        match &mut self.0 {
            Format::Json(stream) => stream.detached(summary),
            Format::Text(text) => text.detached(summary),
        }
    }
}

/// Returns the parent that `/proc` shows for an orphan, which is the new one: its creator is gone.
fn parent_of_orphan(happening: &Happening) -> Option<u32> {
    match happening.what {
        What::Orphaned { .. } => proc::parent(happening.process.id),
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

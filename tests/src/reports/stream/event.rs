//! A line of any kind: an enum tagged by `event`, and what all kinds have.

use std::fmt::Debug;

use serde::Deserialize;

use super::super::{Id, Identified as _, Incomplete, Who, is_process};
use super::{
    Attached, Detached, Exec, Exited, Extinct, Fork, Gone, GpuHeld, GpuReleased, Lost, Orphaned,
    Signalled, Subject,
};
use crate::Process;

/// A time that a line has, or can lack.
pub(super) trait Time {
    /// Returns it as it is written.
    fn as_text(&self) -> Option<&str>;
}

impl Time for String {
    fn as_text(&self) -> Option<&str> {
        Some(self)
    }
}

impl Time for Option<String> {
    fn as_text(&self) -> Option<&str> {
        self.as_deref()
    }
}

/// Writes the enum of all lines, and what every kind has.
macro_rules! kinds {
    ($( $(#[$about:meta])* $name:ident($kind:ident) $word:literal, )+) => {
        /// A line of the stream.
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(tag = "event")]
        pub enum Event {
            $( $(#[$about])* #[serde(rename = $word)] $name($kind), )+
        }

        impl Event {
            /// Returns the word of its kind.
            #[must_use]
            pub const fn word(&self) -> &'static str {
                match self { $( Self::$name(_) => $word, )+ }
            }

            /// Returns what every line has, whatever its kind.
            #[must_use]
            pub fn frame(&self) -> Frame<'_> {
                match self { $( Self::$name(line) => line.frame(), )+ }
            }
        }

        $( impl Line for $kind {
            const WORD: &'static str = $word;

            fn of(event: &Event) -> Option<&Self> {
                match event {
                    Event::$name(line) => Some(line),
                    _ => None,
                }
            }
        } )+
    };
}

/// A kind of line.
pub trait Line: Clone + Debug {
    /// Its word.
    const WORD: &'static str;

    /// Returns the line where it is of this kind.
    fn of(event: &Event) -> Option<&Self>;
}

/// A line about one process.
pub trait About: Line {
    /// Returns the process.
    fn subject(&self) -> &Subject;
}

/// What every line has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame<'a> {
    /// The version of the output.
    pub schema: &'a str,
    /// Its place in the stream.
    pub seq: u64,
    /// When it happened.
    pub time: Option<&'a str>,
    /// The root that is watched.
    pub tree: Id,
}

kinds! {
    /// The first line.
    Attached(Attached) "attached",
    /// A process was created.
    Fork(Fork) "fork",
    /// It runs another program.
    Exec(Exec) "exec",
    /// A fatal signal was delivered to it.
    Signal(Signalled) "signal",
    /// It is dying.
    Exit(Exited) "exit",
    /// Its memory and files are released.
    Gone(Gone) "gone",
    /// Its creator is gone.
    Orphaned(Orphaned) "orphaned",
    /// Its GPU memory was given back.
    Released(GpuReleased) "released",
    /// Its GPU memory was not given back in time.
    Held(GpuHeld) "held",
    /// Something was lost, or recovered.
    Lost(Lost) "lost",
    /// No member can run again.
    Extinct(Extinct) "extinct",
    /// The last line.
    Detached(Detached) "detached",
}

impl Event {
    /// Returns the line as one of this kind, where it is one.
    #[must_use]
    pub fn as_kind<K: Line>(&self) -> Option<&K> {
        K::of(self)
    }

    /// Returns whether it is of this kind and about this process.
    #[must_use]
    pub fn is<K: About>(&self, process: Process) -> bool {
        K::of(self).is_some_and(|line| line.subject().process() == process)
    }

    /// Returns the process that it is about, where it is about one.
    #[must_use]
    pub fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Released(line) => Some(&line.process),
            Self::Held(line) => Some(&line.process),
            _ => self.happening().map(|(subject, ..)| subject),
        }
    }

    /// Returns the creator of the process that it is about, where that is known.
    #[must_use]
    pub fn creator(&self) -> Option<&Who> {
        self.happening().and_then(|(_, creator, _)| creator)
    }

    /// Returns whether the process that it is about was created by this one.
    #[must_use]
    pub fn is_by(&self, process: Process) -> bool {
        is_process(self.creator(), process)
    }

    /// Returns whether it was found by comparison after a loss.
    #[must_use]
    pub fn is_resynced(&self) -> bool {
        self.happening().is_some_and(|(.., resynced)| resynced)
    }

    /// Returns whether answers are complete, where the line says so.
    #[must_use]
    pub const fn is_complete(&self) -> Option<bool> {
        match self {
            Self::Attached(line) => Some(line.complete),
            Self::Lost(line) => Some(line.complete),
            Self::Extinct(line) => Some(line.complete),
            Self::Detached(line) => Some(line.complete),
            _ => None,
        }
    }

    /// Returns why answers are not complete, where the line says so.
    #[must_use]
    pub fn incomplete(&self) -> &[Incomplete] {
        match self {
            Self::Attached(line) => &line.incomplete,
            Self::Detached(line) => &line.incomplete,
            _ => &[],
        }
    }

    /// Returns what all lines have that the tracker has made about one process.
    fn happening(&self) -> Option<(&Subject, Option<&Who>, bool)> {
        match self {
            Self::Fork(line) => Some(line.parts()),
            Self::Exec(line) => Some(line.parts()),
            Self::Signal(line) => Some(line.parts()),
            Self::Exit(line) => Some(line.parts()),
            Self::Gone(line) => Some(line.parts()),
            Self::Orphaned(line) => Some(line.parts()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::read;
    use super::*;

    fn gone() -> Value {
        json!({"event": "gone", "schema": "lifemon/2", "kind": "event", "seq": 4, "after_us": 651,
            "tree": {"pid": 1, "start_ns": 5}, "process": {"pid": 1, "start_ns": 5}})
    }

    #[test]
    fn a_line_is_read_as_its_kind() {
        let Event::Gone(gone) = read(&gone()) else {
            panic!("another kind")
        };
        assert_eq!((gone.process.pid, gone.after_us), (1, Some(651)));
    }

    #[test]
    #[should_panic(expected = "unknown field `after_ms`")]
    fn a_field_of_another_name_is_named() {
        let mut line = gone();
        line["after_ms"] = 1.into();
        _ = read::<Event>(&line);
    }

    #[test]
    #[should_panic(expected = "missing field `tree`")]
    fn a_field_that_is_gone_is_named() {
        let mut line = gone();
        line.as_object_mut().expect("an object").remove("tree");
        _ = read::<Event>(&line);
    }
}

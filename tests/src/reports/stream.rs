//! The lines of `lifemon attach -o json`: an enum tagged by `event`, each with the fields of its
//! kind and no others.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Deserialize;

use super::{Exit, Id, Identified as _, Member, Signal, Who, is_process};
use crate::Process;

/// Writes the lines, each with the same fields first.
macro_rules! lines {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident {
            time: $time:ty,
            $( $(#[$field_about:meta])* pub $field:ident: $kind:ty, )*
        }
    )+) => { $(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The version of the output.
            pub schema: String,
            /// Its place in the stream.
            pub seq: u64,
            /// When it happened.
            pub time: $time,
            /// The root that is watched.
            pub tree: Id,
            $( $(#[$field_about])* pub $field: $kind, )*
        }

        impl $name {
            /// Returns what every line has.
            #[must_use]
            pub fn frame(&self) -> Frame<'_> {
                Frame {
                    schema: &self.schema,
                    seq: self.seq,
                    time: self.time.as_text(),
                    tree: self.tree,
                }
            }
        }
    )+ };
}

/// A time that a line has, or can lack.
trait Time {
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

/// Writes the lines about one process, each with the same fields first.
macro_rules! happenings {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident { $( $(#[$field_about:meta])* pub $field:ident: $kind:ty, )* }
    )+) => {
        lines! { $(
        $(#[$about])*
        pub struct $name {
            time: Option<String>,
            /// Whom it happened to.
            pub process: Subject,
            /// Who created that one.
            pub creator: Option<Who>,
            /// Found by comparison after a loss.
            #[serde(default)]
            pub resynced: bool,
            $( $(#[$field_about])* pub $field: $kind, )*
        }
        )+ }

        $(
        impl $name {
            /// Returns whether the process that it is about was created by this one.
            #[must_use]
            pub fn is_by(&self, process: Process) -> bool {
                is_process(self.creator.as_ref(), process)
            }

            fn parts(&self) -> (&Subject, Option<&Who>, bool) {
                (&self.process, self.creator.as_ref(), self.resynced)
            }
        }

        impl About for $name {
            fn subject(&self) -> &Subject {
                &self.process
            }
        }
        )+
    };
}

super::identified! {
    /// The process that a line is about.
    pub struct Subject {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
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

impl Exited {
    /// Returns how it died.
    ///
    /// # Panics
    /// When the line does not say.
    #[must_use]
    #[track_caller]
    pub fn death(&self) -> &Exit {
        let exit = self.exit.as_ref();
        exit.unwrap_or_else(|| panic!("no exit in {self:?}"))
    }
}

impl Summary {
    /// Returns the deaths by cause, in the order of the causes' names.
    #[must_use]
    pub fn exits(&self) -> Vec<(&str, u64)> {
        let exits = self.exits.iter();
        exits
            .map(|(cause, count)| (cause.as_str(), *count))
            .collect()
    }
}

lines! {
    /// The tree as it was.
    pub struct Attached {
        time: String,
        /// The root.
        pub root: Member,
        /// The living, each creator before what it created.
        pub members: Vec<Member>,
        /// The dead that are remembered.
        pub ghosts: Vec<Member>,
        /// Since when the lineage is known.
        pub since: String,
        /// Whose tracker it is: `host` or `private`.
        pub tracker: String,
        /// Nothing was lost.
        pub complete: bool,
        /// Why it is not complete.
        #[serde(default)]
        pub incomplete: Vec<CountedLoss>,
    }

    /// GPU memory of a process that died, given back.
    pub struct GpuReleased {
        time: String,
        /// Whose it was.
        pub process: Subject,
        /// How long after its exit.
        pub after_us: u64,
    }

    /// GPU memory of a process that died, not given back in time.
    pub struct GpuHeld {
        time: String,
        /// Whose it is.
        pub process: Subject,
        /// How long after its exit.
        pub after_us: u64,
        /// What the process is doing.
        pub state: String,
    }

    /// A loss, or its end.
    pub struct Lost {
        time: String,
        /// In one word.
        pub reason: String,
        /// How much.
        pub count: u64,
        /// It was made good.
        pub recovered: bool,
        /// Answers are complete from here on.
        pub complete: bool,
    }

    /// The end of the tree.
    pub struct Extinct {
        time: String,
        /// Nothing was lost.
        pub complete: bool,
    }

    /// The end of the stream.
    pub struct Detached {
        time: String,
        /// What was counted.
        pub summary: Summary,
        /// Nothing was lost.
        pub complete: bool,
        /// Why it is not complete.
        #[serde(default)]
        pub incomplete: Vec<NamedLoss>,
    }
}

happenings! {
    /// A birth.
    pub struct Fork {}

    /// Another program.
    pub struct Exec {}

    /// A fatal signal.
    pub struct Signalled {
        /// Which, and from whom.
        pub signal: Signal,
    }

    /// A death.
    pub struct Exited {
        /// How it died.
        pub exit: Option<Exit>,
        /// How old it became.
        pub age_ms: Option<u64>,
        /// Its living children.
        pub orphans: Vec<Who>,
    }

    /// The end of all that it held.
    pub struct Gone {
        /// How long after its exit.
        pub after_us: Option<u64>,
    }

    /// The loss of its creator.
    pub struct Orphaned {
        /// `reparented` or `stranded`.
        pub class: String,
        /// The pid of its new parent.
        pub parent: Option<i32>,
    }
}

impl About for GpuReleased {
    fn subject(&self) -> &Subject {
        &self.process
    }
}

impl About for GpuHeld {
    fn subject(&self) -> &Subject {
        &self.process
    }
}

/// A reason why a tree is not complete.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountedLoss {
    /// In one word.
    pub reason: String,
    /// How much.
    pub count: u64,
}

/// A reason why a stream is not complete.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedLoss {
    /// In one word.
    pub reason: String,
}

/// What the last line counts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Processes of the tree that were seen.
    pub seen: u64,
    /// Deaths by cause.
    pub exits: BTreeMap<String, u64>,
    /// Members alive.
    pub alive: u64,
    /// Living members whose creator is dead.
    pub orphans: Vec<Who>,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Events that were found by comparison.
    pub resynced: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::read;
    use super::*;

    fn gone() -> Value {
        json!({"event": "gone", "schema": "lifemon/1", "seq": 4, "after_us": 651,
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

//! The lines of `lifemon attach -o json`, each with the fields of its kind and no others.

mod event;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Exit, Id, Incomplete, Member, Signal, Who, is_process};
use crate::Process;

use event::Time as _;
pub use event::{About, Event, Frame, Line};

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
            /// The kind of the object.
            pub kind: String,
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

            pub(super) fn parts(&self) -> (&Subject, Option<&Who>, bool) {
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
        pub incomplete: Vec<Incomplete>,
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
        pub incomplete: Vec<Incomplete>,
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
        /// The root is dead too.
        pub stranded: bool,
        /// Its new parent.
        pub parent: Option<Who>,
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

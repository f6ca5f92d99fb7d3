//! The lines of `lifemon attach -o json`: an enum tagged by `event`, each with the fields of its
//! kind and no others.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Exit, Id, Incomplete, Member, Signal, Who};

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
    )+ };
}

/// Writes the lines about one process, each with the same fields first.
macro_rules! happenings {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident { $( $(#[$field_about:meta])* pub $field:ident: $kind:ty, )* }
    )+) => { lines! { $(
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
    )+ } };
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

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The first line.
    Attached(Attached),
    /// A process was created.
    Fork(Fork),
    /// It runs another program.
    Exec(Exec),
    /// A fatal signal was delivered to it.
    Signal(Signalled),
    /// It is dying.
    Exit(Exited),
    /// Its memory and files are released.
    Gone(Gone),
    /// Its creator is gone.
    Orphaned(Orphaned),
    /// Its GPU memory was given back.
    Released(GpuReleased),
    /// Its GPU memory was not given back in time.
    Held(GpuHeld),
    /// Something was lost, or recovered.
    Lost(Lost),
    /// No member can run again.
    Extinct(Extinct),
    /// The last line.
    Detached(Detached),
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
        /// The pid of its new parent.
        pub parent: Option<i32>,
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::read;
    use super::*;

    fn gone() -> Value {
        json!({"event": "gone", "schema": "lifemon/2", "seq": 4, "after_us": 651,
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

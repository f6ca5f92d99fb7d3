//! The object of `lifemon kill -o json`.

use serde::Deserialize;

use super::{Evidence, Exit, Id, Incomplete, Member, Who, identified};

identified! {
    /// A process that a kill has ended.
    pub struct Killed {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// How it died.
        pub exit: Option<Exit>,
    }

    /// A process that a kill has not ended.
    pub struct Survivor {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// Why not.
        pub reason: String,
    }

    /// A process that looks like a former member of a tree.
    pub struct Suspect {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// The parent that it has now.
        pub parent: Who,
        /// What speaks for it.
        pub evidence: Vec<Evidence>,
        /// It was killed with the tree.
        pub killed: bool,
    }

    /// GPU memory of one of the killed, given back.
    pub struct Released {
        /// How long that took.
        pub after_ms: f64,
    }

    /// GPU memory of one of the killed, not given back in time.
    pub struct Held {
        /// What the process was doing.
        pub state: String,
    }
}

/// What became of the GPU memory of the killed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Given back.
    pub released: Vec<Released>,
    /// Not given back in time.
    pub held: Vec<Held>,
    /// The driver did not answer.
    pub hung: bool,
    /// The driver's words, where it failed.
    pub failed: Option<String>,
}

/// The object of `lifemon kill -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the output"
)]
pub struct KillReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// The root.
    pub tree: Id,
    /// Nobody was to be killed.
    pub dry_run: bool,
    /// Who would be killed, in a dry run.
    #[serde(default)]
    pub members: Vec<Member>,
    /// Members that are spared.
    #[serde(default)]
    pub spared: Vec<Who>,
    /// Members that selectors leave out.
    pub not_shown: Option<usize>,
    /// Who died.
    pub killed: Vec<Killed>,
    /// Who was dying already.
    pub already_dying: Vec<Who>,
    /// Who is alive.
    pub survivors: Vec<Survivor>,
    /// Who looks like a former member.
    #[serde(default)]
    pub suspects: Vec<Suspect>,
    /// Processes of a member's pid that were no member.
    pub rejected: u64,
    /// The root is older than tracking.
    #[serde(default)]
    pub inferred: bool,
    /// None of the tree can run again.
    pub extinct: bool,
    /// Nothing was lost.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
    /// Until the tree was extinct.
    pub elapsed_ms: f64,
    /// Until the memory of all of them was released.
    pub gone_ms: Option<f64>,
    /// What became of their GPU memory.
    pub gpu: Option<Release>,
}

/// The object of `lifemon kill -o json` with several targets.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillsReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// Nothing was killed.
    pub dry_run: bool,
    /// One for each tree.
    pub kills: Vec<KillReport>,
    /// None of them can run again.
    pub extinct: bool,
    /// Nothing was lost.
    pub complete: bool,
}

//! The object of `lifemon orphans -o json`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Exit, Holding, Incomplete, KillReport, Who, identified};

identified! {
    /// The topmost process of a lineage.
    pub struct Root {
        /// Its `comm`.
        pub name: Option<String>,
        /// Not a ghost.
        pub alive: bool,
    }

    /// An orphan that was not killed.
    pub struct Spared {
        /// Its `comm`.
        pub name: Option<String>,
        /// How it was left.
        pub verdict: String,
        /// Why it was spared.
        pub reason: String,
    }

    /// A process that was left behind.
    pub struct Orphan {
        /// Its `comm`.
        pub name: Option<String>,
    /// The same in base64, where it is no text.
    pub name_bytes: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// `leaked`, `left`, `deliberate` or `inferred`.
        pub verdict: String,
        /// The root of its tree is dead too.
        pub stranded: Option<bool>,
        /// The process that created it.
        pub creator: Option<Who>,
        /// How that one died.
        pub creator_exit: Option<Exit>,
        /// When that was.
        pub orphaned: Option<String>,
        /// How long ago that is.
        pub orphaned_ms: Option<u64>,
        /// How long it has lived.
        pub age_ms: u64,
        /// The topmost process of its lineage.
        pub root: Option<Root>,
        /// The parent that it has now.
        pub parent: Option<Who>,
        /// As in `/proc/PID/stat`.
        pub state: char,
        /// Its command line.
        pub command: Vec<String>,
        /// There is more of the command line.
        #[serde(default)]
        pub truncated: bool,
        /// All of it in base64, where it is no UTF-8.
        pub bytes: Option<String>,
        /// Its cgroup.
        pub cgroup: String,
        /// The unit of systemd that it belongs to.
        pub unit: Option<String>,
        /// The container that it belongs to.
        pub container: Option<String>,
        /// What it holds of GPUs itself.
        pub gpu: Option<Holding>,
        /// It and everything below it.
        pub subtree: Subtree,
        /// What speaks for its verdict.
        #[serde(default)]
        pub evidence: Vec<Evidence>,
    }
}

identified! {
    /// A zombie.
    pub struct Zombie {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Who does not reap it.
        pub parent: Option<Who>,
        /// The state of that one.
        pub parent_state: Option<char>,
        /// When it died.
        pub died: Option<String>,
        /// How long ago that is.
        pub dead_ms: Option<u64>,
        /// How it died.
        pub exit: Option<Exit>,
    }
}

/// An orphan and everything below it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subtree {
    /// The living.
    pub processes: usize,
    /// Their resident memory.
    pub resident_bytes: u64,
    /// Their time on processors.
    pub cpu_ms: u64,
    /// What they hold of GPUs.
    pub gpu: Option<Holding>,
}

/// What speaks for the verdict on an orphan.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// In one word.
    pub kind: String,
    /// In words.
    pub text: String,
}

/// The object of `lifemon orphans -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphansReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// What was left behind.
    pub orphans: Vec<Orphan>,
    /// How many are meant and not shown, by verdict.
    pub not_shown: BTreeMap<String, usize>,
    /// Zombies, where they were asked for.
    pub zombies: Option<Vec<Zombie>>,
    /// What came of killing them, where that was asked for.
    pub kill: Option<KillReport>,
    /// Those that were spared then.
    pub spared: Option<Vec<Spared>>,
    /// The orphans whose trees were killed.
    pub killed_trees: Option<Vec<Who>>,
    /// Since when the lineage is known.
    pub since: String,
    /// Whose tracker has answered: `host` or `private`.
    pub tracker: String,
    /// Nothing was lost.
    pub complete: bool,
    /// Why it is not complete.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
}

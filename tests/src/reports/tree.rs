//! The object of `lifemon tree -o json`.

use serde::Deserialize;

use super::{Exit, Id, Incomplete, Who, Zombie, identified};

/// The object of `lifemon tree -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// The root that was named.
    pub tree: Option<Id>,
    /// The living and the ghosts, each creator before what it created.
    pub processes: Vec<TreeProcess>,
    /// Zombies that they do not reap.
    #[serde(default)]
    pub zombies: Vec<Zombie>,
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

identified! {
    /// A process of a tree.
    pub struct TreeProcess {
        /// Its `comm`.
        pub name: Option<String>,
        /// Its real user.
        pub uid: Option<u32>,
        /// Its pid in its own pid namespace.
        pub ns_pid: Option<i32>,
        /// The process that created it.
        pub creator: Option<Id>,
        /// It is older than tracking.
        #[serde(default)]
        pub inferred: bool,
        /// Ghosts between it and its creator that are no longer known.
        #[serde(default)]
        pub elided: u32,
        /// When it died.
        pub died: Option<String>,
        /// How it died.
        pub exit: Option<Exit>,
        /// It is no ghost.
        pub alive: bool,
        /// How long it has lived.
        pub age_ms: u64,
        /// As in `/proc/PID/stat`.
        pub state: Option<char>,
        /// The parent that it has now.
        pub parent: Option<Who>,
        /// That is another than its creator.
        pub reparented: Option<bool>,
        /// Its command line; of the living alone, as all that follows.
        pub command: Option<Vec<String>>,
        /// There is more of the command line.
        #[serde(default)]
        pub truncated: bool,
        /// All of it in base64, where it is no UTF-8.
        pub bytes: Option<String>,
        /// Its cgroup.
        pub cgroup: Option<String>,
        /// The unit of systemd that it belongs to.
        pub unit: Option<String>,
        /// The container that it belongs to.
        pub container: Option<String>,
    }
}

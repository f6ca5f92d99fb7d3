//! The objects of `lifemon track -o json`.

use serde::Deserialize;

/// The object of `track on` and `track off`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackSwitch {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// `on` or `off`, now.
    pub tracker: String,
    /// It was another before.
    pub changed: bool,
    /// Directories of trackers that were removed.
    #[serde(default)]
    pub removed: Vec<String>,
    /// What was missing from the tracker that was replaced.
    pub repaired: Option<String>,
    /// Where a BPF file system was mounted.
    pub mounted: Option<String>,
    /// A path that is not used, and why.
    pub distrusted: Option<String>,
    /// Since when the lineage is known.
    pub since: Option<String>,
    /// Since when the lineage was known to the tracker that was replaced.
    pub lost_since: Option<String>,
    /// The unit of systemd that was written or removed.
    pub at_boot: Option<String>,
}

/// The object of `track status`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "tracker", rename_all = "lowercase")]
pub enum TrackState {
    /// It is on.
    On(TrackStatus),
    /// It is off, or cannot be used.
    Off(TrackOff),
}

impl TrackState {
    /// Returns the status of a tracker that is on.
    ///
    /// # Panics
    /// When it is off.
    #[must_use]
    #[track_caller]
    pub fn on(self) -> TrackStatus {
        match self {
            Self::On(status) => status,
            Self::Off(off) => panic!("the tracker is off: {off:?}"),
        }
    }

    /// Returns the status of a tracker that is off.
    ///
    /// # Panics
    /// When it is on.
    #[must_use]
    #[track_caller]
    pub fn off(self) -> TrackOff {
        match self {
            Self::Off(off) => off,
            Self::On(status) => panic!("the tracker is on: {status:?}"),
        }
    }
}

/// The object of `track status` of a tracker that is off.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackOff {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// What is wrong with the pins.
    pub problem: Option<String>,
    /// A path that is not used, and why.
    pub distrusted: Option<String>,
}

/// The object of `track status` of a tracker that is on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackStatus {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// Where it is pinned.
    pub directory: String,
    /// What is wrong with the pins.
    pub problem: Option<String>,
    /// A path that is not used, and why.
    pub distrusted: Option<String>,
    /// Since when the lineage is known.
    pub since: String,
    /// Records of the living.
    pub processes: u64,
    /// Records of ghosts.
    pub ghosts: u64,
    /// Orphans among the living.
    pub orphans: u64,
    /// Records that fit.
    pub capacity: u64,
    /// Slots in use.
    pub watched_trees: u64,
    /// Members of all trees together.
    pub memberships: u64,
    /// Of the host, since tracking began.
    pub forks: u64,
    /// Of the host, since tracking began.
    pub exits: u64,
    /// What was lost.
    pub lost: TrackLost,
    /// The flight recorder.
    pub log: Recorder,
    /// Nothing was lost.
    pub complete: bool,
    /// What each hook costs.
    pub cost: Vec<HookCost>,
}

/// What a tracker has lost.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackLost {
    /// Processes without a record.
    pub records: u64,
    /// Forks that the kernel skipped the hook for.
    pub missed_runs: u64,
}

/// What one hook costs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookCost {
    /// Which.
    pub hook: String,
    /// While the kernel measured.
    pub runs: u64,
    /// Absent without any run.
    pub ns_per_run: Option<f64>,
    /// Runs that the kernel skipped.
    pub missed: u64,
}

/// The flight recorder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorder {
    /// Deaths recorded.
    pub recorded: u64,
    /// Those that later ones have taken the place of.
    pub overwritten: u64,
    /// Deaths that fit.
    pub capacity: u64,
}

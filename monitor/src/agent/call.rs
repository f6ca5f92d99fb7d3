//! The calls that the front asks of the core: what is left of a request once HTTP is parsed. They
//! name a connection by its number alone; who that is, the core knows by itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::naming::Name;
use super::problem::Problem;
use crate::wait::Until;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Call {
    /// The lineage of a tree, or of everything.
    Tree {
        /// The root.
        process: Option<Name>,
        /// The form of the answer.
        form: Form,
    },
    /// What was left behind.
    Orphans {
        /// The choice.
        query: OrphansQuery,
        /// The form of the answer.
        form: Form,
    },
    /// Who holds GPUs.
    Gpu {
        /// The form of the answer.
        form: Form,
    },
    /// One process, explained.
    Explain {
        /// The process.
        process: Name,
        /// The form of the answer.
        form: Form,
    },
    /// The deaths that the flight recorder has.
    Log {
        /// The choice.
        query: LogQuery,
        /// The form of the answer.
        form: Form,
    },
    /// Whether a process is well.
    Health {
        /// The process.
        process: Name,
    },
    /// What the agent is, and what the caller may.
    Info,
    /// Whether the agent can answer.
    Ready,
    /// Ends a tree.
    Kill {
        /// What to end.
        request: KillRequest,
        /// The key that makes a repetition harmless.
        key: Option<String>,
    },
    /// What became of a kill.
    KillState {
        /// Its id.
        id: String,
        /// The form of the answer.
        form: Form,
    },
    /// Makes a guard.
    Guard {
        /// What to guard.
        request: GuardRequest,
    },
    /// The caller's guards.
    Guards,
    /// Takes a guard up on this connection.
    TakeUp {
        /// Its id.
        id: String,
    },
    /// Ends a guard; its trees live on.
    Release {
        /// Its id.
        id: String,
    },
    /// Waits for the end of a tree.
    Wait {
        /// What to wait for.
        request: WaitRequest,
    },
    /// Watches a tree.
    Watch {
        /// What to watch.
        request: WatchRequest,
    },
    /// The caller's watches.
    Watches,
    /// Ends a watch.
    Unwatch {
        /// Its id.
        id: String,
    },
    /// Streams events.
    Events {
        /// Which, and from where on.
        query: EventsQuery,
    },
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) struct Form {
    /// Text for people instead of JSON.
    pub(super) is_text: bool,
    /// With colours, as the command line understands them.
    pub(super) colour: bool,
    /// Every process, and whole command lines.
    pub(super) full: bool,
}

/// What an orphan must be to be listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OrphansQuery {
    /// Only those of the tree of this process.
    #[serde(default)]
    pub(super) tree: Option<Name>,
    /// Also what is deliberate, and what is older than tracking.
    #[serde(default)]
    pub(super) all: bool,
    /// Only those that hold a GPU.
    #[serde(default)]
    pub(super) gpu: bool,
}

/// The deaths that are asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Only those of the last `500ms`, `10s`, `5m`, `1h`.
    #[serde(default)]
    pub(super) since: Option<String>,
    /// Only those of the processes of this user, by its number.
    #[serde(default)]
    pub(super) user: Option<u32>,
    /// Only those of the tree of this process, dead or alive.
    #[serde(default)]
    pub(super) tree: Option<Name>,
}

/// What to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KillRequest {
    /// The root of the tree: `self`, `PID@START_NS`, `ns:PID` or `handle:TOKEN`.
    pub(super) process: Name,
    /// The first signal: `TERM`, `INT` or another below 32. Without one the tree is killed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) signal: Option<String>,
    /// The wait after the first signal: `500ms`, `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) grace: Option<String>,
    /// The longest time to go on killing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<String>,
    /// Says what would die, and kills nobody.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Kills also the tree that the caller itself is of, and clients of CUDA MPS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) force: bool,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Waits for the end of the kill before it answers.
    #[serde(default = "yes")]
    pub(super) wait: bool,
}

/// What to guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GuardRequest {
    /// The process whose death ends the trees.
    #[serde(default = "oneself")]
    pub(super) owner: Name,
    /// The roots of the trees.
    pub(super) trees: Vec<Name>,
    /// The wait between SIGTERM and the kill; without it the kill comes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) grace: Option<String>,
    /// Fires also when the connection that has made it, or taken it up, is closed by the caller.
    #[serde(default = "yes")]
    pub(super) on_disconnect: bool,
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitRequest {
    /// The process, or the root of the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<Name>,
    /// Several of them, at most 64: their trees are waited for as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) processes: Vec<Name>,
    /// The condition.
    pub(super) until: Until,
    /// The longest wait, at most a day; without it one of 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<String>,
}

impl WaitRequest {
    /// Returns all that are meant.
    pub(super) fn names(self) -> Vec<Name> {
        self.process.into_iter().chain(self.processes).collect()
    }
}

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchRequest {
    /// The root of the tree.
    pub(super) process: Name,
    /// Ends the watch when the connection that has made it is closed.
    #[serde(default)]
    pub(super) on_disconnect: bool,
}

/// Which events, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// The last event that is known already: `EPOCH:SEQ`.
    #[serde(default)]
    pub(super) after: Option<String>,
    /// Only those of this watched tree.
    #[serde(default)]
    pub(super) tree: Option<Name>,
    /// Only those of this watch, by its id. The stream ends with the watch.
    #[serde(default)]
    pub(super) watch: Option<String>,
    /// Only those of these kinds, separated by commas; `attached`, `lost` and `detached` always.
    #[serde(default, rename = "type")]
    pub(super) kinds: Option<String>,
}

const fn yes() -> bool {
    true
}

const fn oneself() -> Name {
    Name::Oneself
}

/// A message of the front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Message {
    /// A connection asks something.
    Ask {
        /// Its number.
        connection: u64,
        /// The number of the question, which the front chooses.
        number: u64,
        /// The question.
        call: Box<Call>,
    },
    /// Nobody waits for the answer any more.
    Forget {
        /// The number of the question.
        number: u64,
    },
    /// So many bytes of a stream were passed on.
    Passed {
        /// The number of the question.
        number: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The front is done with a connection.
    Done {
        /// Its number.
        connection: u64,
    },
}

/// The head of what the core answers; the body follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// The number of the question.
    pub(super) number: u64,
    /// Status of the answer; of the first part it counts.
    pub(super) status: u16,
    /// Kind of the body.
    pub(super) kind: Kind,
    /// True where no other part follows.
    pub(super) is_last: bool,
}

/// The kind of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// One JSON object.
    Json,
    /// A problem document.
    Problem,
    /// Text for people.
    Text,
    /// One JSON object a line, as they come.
    Lines,
}

impl Kind {
    /// Returns the media type.
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Problem => "application/problem+json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Lines => "application/x-ndjson",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) kind: Kind,
    pub(super) body: String,
}

impl Answer {
    /// Answers with an object that is JSON already.
    pub(super) fn json(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            kind: Kind::Json,
            body: body.into(),
        }
    }

    /// Answers with an object.
    pub(super) fn object(status: u16, body: &serde_json::Value) -> Self {
        Self::json(status, body.to_string() + "\n")
    }

    /// Answers with text for people.
    pub(super) fn text(body: String) -> Self {
        Self {
            status: 200,
            kind: Kind::Text,
            body,
        }
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self {
            status: problem.status,
            kind: Kind::Problem,
            body: problem.to_json(),
        }
    }
}

impl<T: Into<Answer>> From<Result<T, Problem>> for Answer {
    fn from(result: Result<T, Problem>) -> Self {
        result.map_or_else(Into::into, Into::into)
    }
}

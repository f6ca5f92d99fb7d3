//! A kill: what is kept of it on disk, and how it is answered.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::ProcessId;
use crate::agent::call::Answer;
use crate::agent::problem::Problem;

/// The state of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Running,
    Done,
    Failed,
    Interrupted,
}

/// A kill as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kill {
    pub(super) id: String,
    pub(super) order: u64,
    pub(super) account: String,
    pub(super) state: State,
    /// The key of the caller, and the request that it was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<(String, String)>,
    pub(super) root: ProcessId,
    /// The report, as `lifemon kill -o json` prints it, or a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    /// The report in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
}

/// A kill that this agent knows.
pub(super) struct Entry {
    pub(super) kill: Kill,
    pub(super) changed: watch::Sender<State>,
}

impl Kill {
    /// Answers with the report, as far as there is one, or with what has prevented it.
    pub(super) fn answer(&self) -> Answer {
        let mut body = match (&self.state, &self.result) {
            (State::Done, Some(Value::Object(report))) => report.clone(),
            _ => serde_json::Map::new(),
        };
        if self.state == State::Failed
            && let Some(problem) = &self.result
            && let Ok(problem) = serde_json::from_value::<Problem>(problem.clone())
        {
            return problem.into();
        }
        body.insert("id".to_owned(), self.id.clone().into());
        let state = serde_json::to_value(self.state).unwrap_or_default();
        body.insert("state".to_owned(), state);
        let status = if self.state == State::Running {
            202
        } else {
            200
        };
        Answer::object(status, &Value::Object(body))
    }
}

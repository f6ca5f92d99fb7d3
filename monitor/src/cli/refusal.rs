//! What the agent has answered instead of what it was asked for, as the error that the command would
//! have failed with.

use super::{NoSuchProcess, Usage};
use crate::client::Answer;

/// It was the agent that had to answer, and cannot: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAgent(pub(super) String);

/// Returns an answer that is a problem as the error that the command would have failed with.
pub(super) fn refusal(answer: &Answer) -> anyhow::Error {
    let (code, detail) = answer.problem();
    match code.as_str() {
        "no_such_process" => NoSuchProcess(detail).into(),
        "invalid_request" | "invalid_json" => Usage(detail).into(),
        "unavailable" => NoAgent(detail).into(),
        "own_tree" | "mps_clients" => anyhow::anyhow!("{detail} (--force)"),
        _ => anyhow::anyhow!("{detail}"),
    }
}

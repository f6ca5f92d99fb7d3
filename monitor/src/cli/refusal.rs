//! What the agent has answered, as the command prints it; and what it has answered instead of what
//! it was asked for, as the error that the command would have failed with.

use super::{NoSuchProcess, Output, Usage};
use crate::client::Answer;

/// It was the agent that had to answer, and cannot: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAgent(pub(super) String);

/// Returns whether an answer says that there is no such process.
pub(super) fn is_missing(answer: &Answer) -> bool {
    answer.problem().0 == "no_such_process"
}

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

/// Returns an answer as it is printed: JSON says who has given it.
pub(super) fn shown(body: &str, output: Output) -> String {
    match (output, body.trim_end().strip_suffix('}')) {
        (Output::Json, Some(open)) => format!("{open},\"answered_by\":\"agent\"}}\n"),
        _ => body.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_who_has_answered_and_text_does_not() {
        let shown = |output| super::shown("{\"a\":1}\n", output);
        assert_eq!(shown(Output::Json), "{\"a\":1,\"answered_by\":\"agent\"}\n");
        assert_eq!(super::shown("a }\n", Output::Text), "a }\n");
    }
}

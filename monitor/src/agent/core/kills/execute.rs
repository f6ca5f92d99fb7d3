//! Carries a kill out on the calling thread, and says what its failure is for its caller.

use serde_json::Value;

use crate::agent::problem::{Code, Problem};
use crate::kernel::{LoadOptions, Tracker};
use crate::kill::{KillError, KillOptions, kill_tree, kill_trees};
use crate::sys::runtime::current_thread;
use crate::{KillReport, ProcessId};

/// Ends a tree, on this thread.
pub(super) fn execute(root: ProcessId, options: &KillOptions) -> Result<KillReport, KillError> {
    crate::sys::priority::go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    runtime()?.block_on(kill_tree(tracker, root, options))
}

/// Ends trees as one, on this thread; `others` are alive.
pub(in crate::agent::core) fn execute_all(
    root: ProcessId,
    others: &[ProcessId],
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    crate::sys::priority::go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    runtime()?.block_on(kill_trees(tracker, root, others, options))
}

/// Makes the runtime of one kill.
fn runtime() -> Result<tokio::runtime::Runtime, KillError> {
    let runtime = current_thread();
    runtime.map_err(KillError::NotPrepared)
}

/// Returns what the failure of a kill is for its caller.
pub(super) fn problem_of(error: &KillError) -> Problem {
    let code = match error {
        KillError::Refused(_) => Code::Protected,
        KillError::Kernel(crate::Error::NoProcess(_)) => Code::NoSuchProcess,
        KillError::Kernel(crate::Error::NoSlot | crate::Error::NoLayer) => Code::NoTreeLeft,
        KillError::Unsendable(_) => Code::InvalidRequest,
        _ => Code::Unavailable,
    };
    Problem::new(code, error.to_string())
}

/// Returns a problem as it is kept.
pub(super) fn problem_value(problem: &Problem) -> Value {
    serde_json::to_value(problem).unwrap_or_default()
}

//! The JSON of an identity: `{"pid": 4200, "start_ns": 1}`. On the host alone.

use serde::{Deserialize, Serialize};

use crate::ProcessId;

/// `start_ns` is absent where it is not known: where `/proc` hides the process.
#[derive(Serialize, Deserialize)]
#[serde(rename = "ProcessId")]
pub(crate) struct IdJson {
    pid: u32,
    #[serde(default, skip_serializing_if = "is_unknown")]
    start_ns: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_unknown(start_ns: &u64) -> bool {
    *start_ns == 0
}

impl From<ProcessId> for IdJson {
    fn from(id: ProcessId) -> Self {
        Self {
            pid: id.pid,
            start_ns: id.start_ns,
        }
    }
}

impl From<IdJson> for ProcessId {
    fn from(json: IdJson) -> Self {
        Self::new(json.pid, json.start_ns)
    }
}

//! Pieces of the JSON of lifemon, the same in every object. Fields are absent when unknown, never
//! invented.

use schemars::JsonSchema;
use serde::Serialize;

use crate::ProcessId;
use crate::orphan::Evidence;
use crate::process::json::ExitJson;
use crate::process::{Name, Process};

/// Version of every object.
pub const SCHEMA: &str = "lifemon/2";

/// Identity alone.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Id {
    pid: u32,
    start_ns: u64,
}

impl From<ProcessId> for Id {
    fn from(id: ProcessId) -> Self {
        Self {
            pid: id.pid,
            start_ns: id.start_ns,
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ProcessJson {
    #[serde(flatten)]
    id: Id,
    #[serde(flatten)]
    name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_pid: Option<u32>,
}

impl From<&Process> for ProcessJson {
    fn from(process: &Process) -> Self {
        Self {
            id: process.id.into(),
            name: process.name.clone(),
            uid: process.uid,
            ns_pid: process.ns_pid,
        }
    }
}

/// One reason for a verdict, or for a suspicion.
#[derive(Serialize, JsonSchema)]
pub(super) struct EvidenceJson {
    pub(super) kind: &'static str,
    pub(super) text: String,
}

impl From<&Evidence> for EvidenceJson {
    fn from(evidence: &Evidence) -> Self {
        Self {
            kind: evidence.word(),
            text: evidence.to_string(),
        }
    }
}

/// A member or ghost in a list: with its creator, and with its death if it is a ghost.
#[derive(Serialize, JsonSchema)]
pub(super) struct MemberJson {
    #[serde(flatten)]
    process: ProcessJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<Id>,
    #[serde(skip_serializing_if = "is_false")]
    inferred: bool,
    #[serde(skip_serializing_if = "is_zero")]
    elided: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    died: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
    /// Of a kill that is tried: what says that it was to stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deliberate: Vec<EvidenceJson>,
    /// Of a kill that is tried: it is a client of CUDA MPS.
    #[serde(skip_serializing_if = "is_false")]
    mps_client: bool,
}

impl From<&Process> for MemberJson {
    fn from(process: &Process) -> Self {
        Self {
            process: process.into(),
            creator: process.creator.map(Into::into),
            inferred: process.inferred,
            elided: process.elided,
            died: None,
            exit: None,
            deliberate: Vec::new(),
            mps_client: false,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl MemberJson {
    /// Says what there is to know before it is killed.
    pub(super) fn mark(&mut self, deliberate: Vec<EvidenceJson>, mps_client: bool) {
        self.deliberate = deliberate;
        self.mps_client = mps_client;
    }

    /// Says when and how it died.
    pub(super) fn set_death(&mut self, died: String, exit: ExitJson) {
        self.died = Some(died);
        self.exit = Some(exit);
    }
}

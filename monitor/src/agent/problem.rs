//! What went wrong with a request, as a problem document (RFC 9457) with a stable `code`: programs
//! decide by the code, people read the detail.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Stable names of everything that can go wrong. New ones can come; none changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A part of the request cannot be read.
    InvalidRequest,
    /// The body is no JSON of the expected form.
    InvalidJson,
    /// The JSON of the body is nested too deeply.
    JsonTooDeep,
    /// The body is too large.
    BodyTooLarge,
    /// The request did not arrive in time.
    RequestTimeout,
    /// There is no such resource.
    NotFound,
    /// The resource has no such method.
    MethodNotAllowed,
    /// No living process and no ghost is meant, or none that the caller may know of.
    NoSuchProcess,
    /// There is no such kill of this caller.
    NoSuchKill,
    /// There is no such guard of this caller.
    NoSuchGuard,
    /// There is no such watch of this caller.
    NoSuchWatch,
    /// The caller may not do that.
    Forbidden,
    /// Nobody may end that.
    Protected,
    /// The caller is itself of the tree that it wants to end; `force` ends it.
    OwnTree,
    /// Clients of CUDA MPS would die; `force` ends them.
    MpsClients,
    /// The caller ended before it could be looked at.
    PeerGone,
    /// The key was used for another request.
    KeyReused,
    /// A limit of this user, or of the agent, is reached.
    LimitReached,
    /// The kernel's trees are all in use.
    NoTreeLeft,
    /// The agent cannot answer now.
    Unavailable,
    /// A defect of the agent.
    Internal,
}

impl Code {
    /// Returns the status of the answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidJson | Self::JsonTooDeep => 400,
            Self::Forbidden | Self::Protected | Self::PeerGone => 403,
            Self::NotFound
            | Self::NoSuchProcess
            | Self::NoSuchKill
            | Self::NoSuchGuard
            | Self::NoSuchWatch => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::KeyReused | Self::OwnTree | Self::MpsClients => 409,
            Self::BodyTooLarge => 413,
            Self::LimitReached | Self::NoTreeLeft => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// Returns whether it says that somebody was not to be ended or looked at: that is logged.
    pub(super) const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Forbidden | Self::Protected | Self::OwnTree | Self::MpsClients
        )
    }

    const fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "the request cannot be read",
            Self::InvalidJson => "the body is not the JSON that is expected",
            Self::JsonTooDeep => "the JSON is nested too deeply",
            Self::BodyTooLarge => "the body is too large",
            Self::RequestTimeout => "the request did not arrive in time",
            Self::NotFound => "no such resource",
            Self::MethodNotAllowed => "no such method here",
            Self::NoSuchProcess => "no such process",
            Self::NoSuchKill => "no such kill",
            Self::NoSuchGuard => "no such guard",
            Self::NoSuchWatch => "no such watch",
            Self::Forbidden => "not permitted",
            Self::Protected => "protected",
            Self::OwnTree => "the caller is of that tree",
            Self::MpsClients => "clients of CUDA MPS would die",
            Self::PeerGone => "the caller has ended",
            Self::KeyReused => "the key was used for another request",
            Self::LimitReached => "a limit is reached",
            Self::NoTreeLeft => "no tree is left to watch with",
            Self::Unavailable => "cannot answer now",
            Self::Internal => "a defect of the agent",
        }
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:lifemon:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words, always the same.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// The stable name.
    pub code: Code,
    /// This case, and what to do.
    pub detail: String,
}

impl Problem {
    /// Makes one.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let name = serde_json::to_value(code).ok();
        let name = name.as_ref().and_then(|name| name.as_str());
        Self {
            kind: format!("urn:lifemon:problem:{}", name.unwrap_or_default()),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
        }
    }

    /// Returns it as JSON and a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

impl From<crate::kernel::Error> for Problem {
    fn from(error: crate::kernel::Error) -> Self {
        use crate::kernel::Error;
        let code = match error {
            Error::NoProcess(_) => Code::NoSuchProcess,
            Error::NoSlot | Error::NoLayer => Code::NoTreeLeft,
            _ => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_members_of_the_standard_and_a_stable_code() {
        let problem = Problem::new(Code::NoSuchProcess, "no process 7");
        let json: serde_json::Value = serde_json::from_str(&problem.to_json()).unwrap();
        assert_eq!(json["type"], "urn:lifemon:problem:no_such_process");
        assert_eq!(json["status"], 404);
        assert_eq!(json["code"], "no_such_process");
        assert_eq!(json["detail"], "no process 7");
    }
}

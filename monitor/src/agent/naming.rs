//! The names of processes in requests: `self`, `PID@START_NS`, `ns:PID`, `handle:TOKEN`. A program
//! in a container names its processes without knowing pids of the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::PartialSchema;

/// Bytes of a token at most.
const TOKEN_BYTES_MAX: usize = 64;

/// A process as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Name {
    /// The caller.
    Oneself,
    /// Exactly this one, by its pid on the host.
    Exact {
        /// Pid in the initial pid namespace.
        pid: u32,
        /// Its start.
        start_ns: u64,
    },
    /// The living one that has this pid in the pid namespace of the caller.
    InNamespace(u32),
    /// The one whose pidfd the caller has handed over.
    Handle(String),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected self, PID@START_NS, ns:PID or handle:TOKEN";
        let pid = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let pid = text.parse::<i32>().ok().filter(|pid| is_plain && *pid > 0);
            pid.map(i32::cast_unsigned)
                .ok_or_else(|| EXPECTED.to_owned())
        };
        if text == "self" {
            return Ok(Self::Oneself);
        }
        if let Some(inner) = text.strip_prefix("ns:") {
            return Ok(Self::InNamespace(pid(inner)?));
        }
        if let Some(token) = text.strip_prefix("handle:") {
            let is_token = (1..=TOKEN_BYTES_MAX).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_alphanumeric());
            return is_token
                .then(|| Self::Handle(token.to_owned()))
                .ok_or_else(|| EXPECTED.to_owned());
        }
        let (number, start) = text.split_once('@').ok_or_else(|| {
            format!("{EXPECTED}; a pid alone can be another's by the time it is looked at")
        })?;
        let is_plain = !start.is_empty() && start.bytes().all(|byte| byte.is_ascii_digit());
        let start_ns = start.parse().ok().filter(|_| is_plain);
        Ok(Self::Exact {
            pid: pid(number)?,
            start_ns: start_ns.ok_or_else(|| EXPECTED.to_owned())?,
        })
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oneself => f.write_str("self"),
            Self::Exact { pid, start_ns } => write!(f, "{pid}@{start_ns}"),
            Self::InNamespace(pid) => write!(f, "ns:{pid}"),
            Self::Handle(token) => write!(f, "handle:{token}"),
        }
    }
}

impl PartialSchema for Name {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl utoipa::ToSchema for Name {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["self", "12@345", "ns:7", "handle:ab12"] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "12",
            "0@1",
            "-1@1",
            "+1@1",
            "12@",
            "12@-1",
            "ns:",
            "ns:0",
            "ns:x",
            "handle:",
            "handle:a/b",
            "Self",
            "4294967295@1",
            "12@345@6",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was read");
        }
    }
}

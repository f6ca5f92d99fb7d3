//! The JSON of identities, deaths and senders, in both directions: it is printed, and sent between
//! lifemon's own processes. Defined once, so that all outputs agree. Pure.

use serde::{Deserialize, Serialize};

#[cfg(feature = "cli")]
use super::Name;
#[cfg(feature = "cli")]
use super::name::NameJson;
use super::{Cause, Death, Sender, Signal, Who};

/// Serializes a [`Duration`](std::time::Duration) in milliseconds, for `#[serde(with = "…")]`.
pub(crate) mod ms {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        (time.as_secs_f64() * 1e3).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)? / 1e3).map_err(D::Error::custom)
    }
}

/// The shape of an identity, whose type is the kernel half's.
#[cfg(feature = "cli")]
#[derive(schemars::JsonSchema)]
#[schemars(rename = "Id")]
#[expect(dead_code, reason = "only its shape is wanted")]
pub(crate) struct IdSchema {
    /// Pid in the initial pid namespace.
    pid: u32,
    /// Start of the process, in ns since boot; absent where it is not known.
    #[schemars(default)]
    start_ns: u64,
}

/// Gives types the shape of what they are written as.
#[cfg(feature = "cli")]
macro_rules! shaped_as {
    ($($name:ident: $shape:ty,)+) => { $(
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(from: &mut schemars::SchemaGenerator) -> schemars::Schema {
                <$shape>::json_schema(from)
            }
        }
    )+ };
}

#[cfg(feature = "cli")]
shaped_as! {
    Death: ExitJson,
    Name: NameJson,
    Sender: SenderJson,
    Signal: i32,
}

/// The death of a process. `code` and `signal` are both there, one of them null, so that a script
/// needs no test for presence.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub(crate) struct ExitJson {
    code: Option<u32>,
    signal: Option<Signal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal_name: Option<String>,
    core_dumped: bool,
    cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sender: Option<Sender>,
    #[serde(default, skip_serializing_if = "is_false")]
    parent_death: bool,
}

impl From<&Death> for ExitJson {
    fn from(death: &Death) -> Self {
        Self {
            code: death.code(),
            signal: death.signal(),
            signal_name: death.signal().map(|signal| signal.to_string()),
            core_dumped: death.core_dumped(),
            cause: death.cause(),
            sender: death.sender.clone(),
            parent_death: death.by_parent_death,
        }
    }
}

impl From<Death> for ExitJson {
    fn from(death: Death) -> Self {
        Self::from(&death)
    }
}

impl From<ExitJson> for Death {
    fn from(exit: ExitJson) -> Self {
        let status = match (exit.signal, exit.code) {
            (Some(signal), _) => signal.number().cast_unsigned() | u32::from(exit.core_dumped) << 7,
            (None, code) => (code.unwrap_or(0) & 0xff) << 8,
        };
        Self {
            status,
            is_oom: exit.cause == Cause::Oom,
            sender: exit.sender,
            unseen: exit.cause == Cause::Unseen,
            by_parent_death: exit.parent_death,
        }
    }
}

/// The sender of a signal: a process, or `kernel`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub(crate) struct SenderJson {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    process: Option<Who>,
    #[serde(default, skip_serializing_if = "is_false")]
    kernel: bool,
}

impl From<Sender> for SenderJson {
    fn from(sender: Sender) -> Self {
        let kernel = sender == Sender::Kernel;
        let process = match sender {
            Sender::Process(who) => Some(who),
            Sender::Kernel => None,
        };
        Self { process, kernel }
    }
}

impl TryFrom<SenderJson> for Sender {
    type Error = &'static str;

    fn try_from(json: SenderJson) -> Result<Self, Self::Error> {
        match json.process {
            Some(who) => Ok(Self::Process(who)),
            None if json.kernel => Ok(Self::Kernel),
            None => Err("a sender is a process or the kernel"),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ProcessId;

    fn killed_by(sender: Option<Sender>) -> Death {
        Death {
            sender,
            ..Death::from_wait_status(9)
        }
    }

    #[test]
    fn an_exit_has_a_code_or_a_signal() {
        let exit = |status| serde_json::to_value(Death::from_wait_status(status)).unwrap();
        assert_eq!(
            exit(3 << 8),
            json!({"code": 3, "signal": null, "core_dumped": false, "cause": "exited"})
        );
        assert_eq!(
            exit(6 | 0x80),
            json!({
                "code": null, "signal": 6, "signal_name": "SIGABRT", "core_dumped": true,
                "cause": "signal",
            })
        );
    }

    #[test]
    fn a_death_comes_back_as_it_was() {
        let sender = Who {
            id: ProcessId::new(77, 5),
            name: Some("bash".into()),
        };
        let nameless = Who {
            id: ProcessId::new(78, 0),
            name: None,
        };
        let deaths = [
            Death::from_wait_status(0),
            Death::from_wait_status(200 << 8),
            Death::from_wait_status(6 | 0x80),
            killed_by(Some(Sender::Kernel)),
            killed_by(Some(Sender::Process(sender))),
            killed_by(Some(Sender::Process(nameless))),
            Death {
                is_oom: true,
                ..killed_by(None)
            },
            Death {
                unseen: true,
                ..Death::from_wait_status(0)
            },
        ];
        for death in deaths {
            let text = serde_json::to_string(&death).unwrap();
            assert_eq!(
                serde_json::from_str::<Death>(&text).unwrap(),
                death,
                "{text}"
            );
        }
    }

    #[test]
    fn a_sender_without_an_identity_is_refused() {
        assert!(serde_json::from_value::<Sender>(json!({})).is_err());
        let kernel = serde_json::from_value::<Sender>(json!({"kernel": true}));
        assert_eq!(kernel.unwrap(), Sender::Kernel);
    }
}

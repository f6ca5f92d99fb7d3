//! The name of a process. The process chooses it, and it need not be text.

use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// The name of a process, its `comm`: at most 15 bytes, for it to choose. It is used as text, where
/// what is not UTF-8 is replaced; [`Name::as_bytes`] returns it as it is.
///
/// ```
/// let name = lifemon::Name::from_bytes(b"work\xff");
/// assert!(name.starts_with("work"));
/// assert_eq!(name.as_bytes(), b"work\xff");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "NameJson", from = "NameJson")]
pub struct Name {
    text: String,
    /// What it is, where that is no text.
    bytes: Option<Vec<u8>>,
}

impl Name {
    /// Returns the name that these bytes are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let bytes = (text.as_bytes() != bytes).then(|| bytes.to_vec());
        Self { text, bytes }
    }

    /// Returns it as the process has it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.text.as_bytes())
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }
}

/// The fields of a name in every object.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub(super) struct NameJson {
    /// Its `comm`; what is not UTF-8 is replaced.
    name: String,
    /// The same in base64, without loss, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name_bytes: Option<String>,
}

impl From<Name> for NameJson {
    fn from(name: Name) -> Self {
        Self {
            name: name.text,
            name_bytes: name.bytes.map(|bytes| BASE64_STANDARD.encode(bytes)),
        }
    }
}

impl From<NameJson> for Name {
    fn from(json: NameJson) -> Self {
        let bytes = json
            .name_bytes
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        bytes.map_or_else(|| Self::from(&*json.name), |bytes| Self::from_bytes(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_lost_in_json() {
        for (bytes, json) in [
            (&b"worker"[..], r#"{"name":"worker"}"#),
            ("a\u{fffd}".as_bytes(), "{\"name\":\"a\u{fffd}\"}"),
            (b"a\xff", "{\"name\":\"a\u{fffd}\",\"name_bytes\":\"Yf8=\"}"),
        ] {
            let name = Name::from_bytes(bytes);
            assert_eq!(name.as_bytes(), bytes);
            assert_eq!(serde_json::to_string(&name).unwrap(), json);
            assert_eq!(serde_json::from_str::<Name>(json).unwrap(), name);
        }
    }
}

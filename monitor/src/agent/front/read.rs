//! Reads what a request brings: its query, its body, and the names and keys in it. Everything here
//! comes from callers, and has limits.

use axum::extract::Query;
use axum::http::{HeaderMap, Uri, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::call::Form;
use super::super::naming::Name;
use super::super::problem::{Code, Problem};

/// Levels of brackets in JSON at most.
const DEPTH_MAX: usize = 32;
/// Characters of an id, or of a key, at most.
const KEY_CHARS_MAX: usize = 128;

/// Reads the query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let read = Query::try_from_uri(uri).map(|Query(query)| query);
    read.map_err(|error| Problem::new(Code::InvalidRequest, error.body_text()))
}

/// Reads the query of a request whose answer has a form: its words are read by themselves, since
/// words of one are unknown to the other.
pub(super) fn query_with_form<T: DeserializeOwned>(
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(T, Form), Problem> {
    let words = uri.query().unwrap_or_default().split('&');
    let is_of_form = |word: &&str| {
        let name = word.split('=').next();
        name.is_some_and(|name| FormQuery::WORDS.contains(&name))
    };
    let (form, others): (Vec<_>, Vec<_>) = words.partition(is_of_form);
    let part = |words: &[&str]| {
        let uri = format!("/?{}", words.join("&")).parse();
        uri.map_err(|_| Problem::new(Code::InvalidRequest, "this is no query"))
    };
    let form = query::<FormQuery>(&part(&form)?)?.form(headers);
    Ok((query(&part(&others)?)?, form))
}

/// Reads a body.
pub(super) fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if depth(bytes) > DEPTH_MAX {
        let detail = format!("at most {DEPTH_MAX} levels of brackets");
        return Err(Problem::new(Code::JsonTooDeep, detail));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::new(Code::InvalidJson, error.to_string()))
}

/// Returns how deep brackets are nested; those in strings do not count.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut is_string = false;
    let mut bytes = bytes.iter();
    while let Some(byte) = bytes.next() {
        match (is_string, byte) {
            (true, b'\\') => {
                bytes.next();
            }
            (_, b'"') => is_string = !is_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Reads the name of a process.
pub(super) fn name(text: &str) -> Result<Name, Problem> {
    let read = text.parse();
    read.map_err(|why: String| Problem::new(Code::InvalidRequest, why))
}

/// Reads an id, or a key of a caller.
pub(super) fn key(text: String) -> Result<String, Problem> {
    let is_key = (1..=KEY_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_key.then_some(text).ok_or_else(|| {
        let detail = format!("at most {KEY_CHARS_MAX} printable characters without spaces");
        Problem::new(Code::InvalidRequest, detail)
    })
}

/// The words of a query that say which form the answer has.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FormQuery {
    /// Whole command lines, where the answer is text.
    #[serde(default)]
    full: bool,
    /// Colours, where the answer is text.
    #[serde(default)]
    colour: bool,
}

impl FormQuery {
    const WORDS: [&str; 2] = ["full", "colour"];

    /// Returns the form that they ask for, with the headers.
    pub(super) fn form(&self, headers: &HeaderMap) -> Form {
        let accepted = headers.get(header::ACCEPT);
        Form {
            is_text: accepted.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain")),
            colour: self.colour,
            full: self.full,
        }
    }
}

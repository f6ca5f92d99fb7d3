//! What a wait has come to, as text and as JSON.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::json::{ProcessJson, SCHEMA};
use super::text;
use crate::loss::{Incomplete, Loss};
use crate::process::json::ExitJson;
use crate::process::{Death, Process};
use crate::words::count;

/// The end of a wait.
#[derive(Debug)]
pub struct Waited<'a> {
    /// The condition, in a word.
    pub until: &'static str,
    /// True if it came.
    pub holds: bool,
    /// The processes that were named.
    pub targets: &'a [Process],
    /// The first that has died, where that was waited for, and how.
    pub died: Option<&'a (Process, Option<Death>)>,
    /// Processes of the trees that are alive.
    pub alive: u64,
    /// A reason why it will not come.
    pub trouble: Option<String>,
    /// The time that it took.
    pub elapsed: Duration,
    /// The losses.
    pub losses: &'a [Loss],
}

impl Waited<'_> {
    /// Returns who has died, where that is the answer.
    fn first(&self) -> Option<&(Process, Option<Death>)> {
        self.died.filter(|_| self.holds && self.until == "any-exit")
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct WaitJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "wait"))]
    kind: &'static str,
    until: &'static str,
    holds: bool,
    targets: Vec<ProcessJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitJson>,
    alive: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// `released` is about nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    covers: Option<&'static str>,
    elapsed_ms: f64,
    complete: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<Incomplete>,
}

/// Returns the end of a wait as one JSON object and a newline.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(waited: &Waited<'_>) -> Result<String, serde_json::Error> {
    let first = waited.first();
    let json = WaitJson {
        schema: SCHEMA,
        kind: "wait",
        until: waited.until,
        holds: waited.holds,
        targets: waited.targets.iter().map(Into::into).collect(),
        process: first.map(|(process, _)| process.into()),
        exit: first.and_then(|(_, death)| Some(death.as_ref()?.into())),
        alive: waited.alive,
        reason: waited.trouble.as_deref(),
        covers: (waited.until == "released").then_some("gpu_memory"),
        elapsed_ms: waited.elapsed.as_secs_f64() * 1e3,
        complete: waited.losses.is_empty(),
        incomplete: Incomplete::all(waited.losses),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// Returns the end of a wait in words.
#[must_use]
pub fn text(waited: &Waited<'_>, colour: bool) -> String {
    let ms = waited.elapsed.as_millis().try_into().unwrap_or(u64::MAX);
    let after = text::duration_ms(ms);
    let mut text = match (waited.first(), waited.holds) {
        (Some((process, death)), _) => {
            let how = death.as_ref().map(text::how);
            let how = how.unwrap_or_else(|| "how is not known".to_owned());
            format!("{} has died after {after}: {how}\n", text::process(process))
        }
        (None, true) if waited.until == "released" => format!(
            "released after {after} (GPU memory alone: host memory that a driver had pinned can \
             come back later)\n"
        ),
        (None, true) => format!("{} after {after}\n", waited.until),
        (None, false) => match &waited.trouble {
            Some(trouble) => format!("not {} after {after}: {trouble}\n", waited.until),
            None => format!(
                "not {} after {after}: {} of the trees alive\n",
                waited.until,
                count(
                    usize::try_from(waited.alive).unwrap_or(usize::MAX),
                    "process"
                )
            ),
        },
    };
    text::incomplete(&mut text, colour, waited.losses);
    text
}

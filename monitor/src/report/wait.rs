//! What a wait has come to, as text and as JSON.

use schemars::JsonSchema;
use serde::Serialize;

use super::json::{ProcessJson, SCHEMA};
use super::text;
use crate::loss::Incomplete;
use crate::process::json::ExitJson;
use crate::process::{Death, Process};
use crate::wait::{Until, Waited};
use crate::words::count;

/// Returns who has died, where that is the answer.
fn first(waited: &Waited) -> Option<&(Process, Option<Death>)> {
    let is_asked = waited.holds && waited.until == Until::AnyExit;
    waited.died.as_ref().filter(|_| is_asked)
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
pub fn json(waited: &Waited) -> Result<String, serde_json::Error> {
    let first = first(waited);
    let json = WaitJson {
        schema: SCHEMA,
        kind: "wait",
        until: waited.until.word(),
        holds: waited.holds,
        targets: waited.targets.iter().map(Into::into).collect(),
        process: first.map(|(process, _)| process.into()),
        exit: first.and_then(|(_, death)| Some(death.as_ref()?.into())),
        alive: waited.alive,
        reason: waited.trouble.as_deref(),
        covers: (waited.until == Until::Released).then_some("gpu_memory"),
        elapsed_ms: waited.elapsed.as_secs_f64() * 1e3,
        complete: waited.losses.is_empty(),
        incomplete: Incomplete::all(&waited.losses),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// Returns the end of a wait in words.
#[must_use]
pub fn text(waited: &Waited, colour: bool) -> String {
    let ms = waited.elapsed.as_millis().try_into().unwrap_or(u64::MAX);
    let after = text::duration_ms(ms);
    let until = waited.until.word();
    let mut text = match (first(waited), waited.holds) {
        (Some((process, death)), _) => {
            let how = death.as_ref().map(text::how);
            let how = how.unwrap_or_else(|| "how is not known".to_owned());
            format!("{} has died after {after}: {how}\n", text::process(process))
        }
        (None, true) if waited.until == Until::Released => format!(
            "released after {after} (GPU memory alone: host memory that a driver had pinned can \
             come back later)\n"
        ),
        (None, true) => format!("{until} after {after}\n"),
        (None, false) => match &waited.trouble {
            Some(trouble) => format!("not {until} after {after}: {trouble}\n"),
            None => format!(
                "not {until} after {after}: {} of the trees alive\n",
                count(
                    usize::try_from(waited.alive).unwrap_or(usize::MAX),
                    "process"
                )
            ),
        },
    };
    text::incomplete(&mut text, colour, &waited.losses);
    text
}

/// Reads what [`json`] has written.
///
/// # Errors
/// When it is something else.
#[cfg(feature = "agent")]
pub fn read(text: &str) -> Result<Waited, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Read {
        until: Until,
        holds: bool,
        targets: Vec<Process>,
        process: Option<Process>,
        exit: Option<Death>,
        alive: u64,
        reason: Option<String>,
        elapsed_ms: f64,
        #[serde(default)]
        incomplete: Vec<Incomplete>,
    }
    let read: Read = serde_json::from_str(text)?;
    Ok(Waited {
        until: read.until,
        holds: read.holds,
        targets: read.targets,
        died: read.process.map(|process| (process, read.exit)),
        alive: read.alive,
        trouble: read.reason,
        elapsed: std::time::Duration::try_from_secs_f64(read.elapsed_ms / 1e3).unwrap_or_default(),
        losses: read.incomplete.iter().map(|one| one.reason).collect(),
    })
}

#[cfg(all(test, feature = "agent"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ProcessId;
    use crate::loss::Loss;

    #[test]
    fn what_was_written_reads_the_same() {
        let process = Process {
            name: Some("worker".into()),
            ..Process::unknown(ProcessId::new(7, 9))
        };
        for (until, holds, died) in [
            (Until::AnyExit, true, Some(Death::from_wait_status(9))),
            (Until::AnyExit, true, None),
            (Until::Released, true, None),
            (Until::Released, false, None),
            (Until::Extinct, false, None),
        ] {
            let waited = Waited {
                until,
                holds,
                targets: vec![process.clone()],
                died: (until == Until::AnyExit).then(|| (process.clone(), died)),
                alive: 3,
                trouble: (until == Until::Released && !holds).then(|| "held".to_owned()),
                elapsed: Duration::from_millis(1_500),
                losses: vec![Loss::RingFull],
            };
            let again = read(&json(&waited).unwrap()).unwrap();
            assert_eq!(text(&again, false), text(&waited, false));
            assert_eq!(again.targets, waited.targets);
        }
    }
}

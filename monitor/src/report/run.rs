//! What a command has left behind: nothing is printed where nothing was left, otherwise a few
//! lines, and one JSON object on request.

use std::fmt::Write as _;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::json::SCHEMA;
use super::out::printable;
use crate::ProcessId;
use crate::kill::{Killed, Subject, Survivor, Way};
use crate::loss::Incomplete;
use crate::process::{Death, json as process_json};
use crate::supervise::{Ended, RunOptions};
use crate::words::count;

/// Processes that are named in the text.
const NAMED_MAX: usize = 20;

#[derive(Serialize, JsonSchema)]
pub(crate) struct RunJson<'a> {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "run"))]
    kind: &'static str,
    command: CommandJson,
    exit: &'a Death,
    code: u8,
    way: Way,
    killed: &'a [Killed],
    survivors: &'a [Survivor],
    kept: bool,
    complete: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    incomplete: &'a [Incomplete],
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not_ebpf: Option<&'a str>,
    #[serde(rename = "elapsed_ms", with = "process_json::ms")]
    #[schemars(with = "f64")]
    elapsed: Duration,
}

#[derive(Serialize, JsonSchema)]
struct CommandJson {
    #[serde(flatten)]
    #[schemars(with = "crate::process::json::IdSchema")]
    id: ProcessId,
    words: Vec<String>,
}

/// Returns the report as one JSON object and a newline, with the exit code of lifemon.
///
/// # Errors
/// Never in practice: all of it can be written as JSON.
pub fn json(options: &RunOptions, ended: &Ended, code: u8) -> Result<String, serde_json::Error> {
    let rest = &ended.rest;
    let words = options.words.iter();
    let json = RunJson {
        schema: SCHEMA,
        kind: "run",
        command: CommandJson {
            id: ended.command,
            words: words.map(|word| word.to_string_lossy().into()).collect(),
        },
        exit: &ended.death,
        code,
        way: rest.way,
        killed: &rest.killed,
        survivors: &rest.survivors,
        kept: options.keep_orphans || options.keep_matching.is_some(),
        complete: rest.complete,
        incomplete: &rest.incomplete,
        why_not_ebpf: rest.why_not_ebpf.as_deref(),
        elapsed: rest.elapsed,
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// Returns what was left, in words; nothing where that is nothing.
#[must_use]
pub fn text(options: &RunOptions, ended: &Ended) -> String {
    let rest = &ended.rest;
    let mut text = String::new();
    let way = format!(
        "{}{}",
        rest.way.word(),
        if rest.complete { "" } else { ", not complete" }
    );
    if !rest.killed.is_empty() {
        // Who sent the signal is known: lifemon.
        let how = |killed: &Killed| killed.death.as_ref().map(|death| format!("{death:#}"));
        let killed = rest.killed.iter();
        let _ = writeln!(
            text,
            "lifemon: {} left behind, killed ({way}): {}",
            count(rest.killed.len(), "process"),
            list(killed.map(|killed| (&killed.process, how(killed)))),
        );
    }
    let keeps = options.keep_orphans || options.keep_matching.is_some();
    let (kept, left): (Vec<&Survivor>, Vec<_>) = rest
        .survivors
        .iter()
        .partition(|left| keeps && left.reason.is_none());
    for (survivors, what) in [
        (kept, "left behind, kept"),
        (left, "left behind and still alive"),
    ] {
        if survivors.is_empty() {
            continue;
        }
        let all = survivors.iter();
        let _ = writeln!(
            text,
            "lifemon: {} {what} ({way}): {}",
            count(survivors.len(), "process"),
            list(all.map(|left| (&left.process, left.reason.clone()))),
        );
    }
    let has_succeeded = ended.death.code() == Some(0);
    if has_succeeded && ended.left_daemons && !rest.killed.is_empty() {
        text += "lifemon: a command that starts a daemon ends before it: --keep-orphans leaves it alive\n";
    }
    for reason in &rest.incomplete {
        let _ = writeln!(
            text,
            "lifemon: somebody may be missing: {}",
            printable(&reason.to_string())
        );
    }
    text
}

fn list<'a>(processes: impl ExactSizeIterator<Item = (&'a Subject, Option<String>)>) -> String {
    let all = processes.len();
    let named = processes.take(NAMED_MAX).map(|(process, detail)| {
        let name = process.name.as_deref().map_or("?".into(), printable);
        let detail = detail.map_or_else(String::new, |detail| format!(" ({})", printable(&detail)));
        format!("{} {name}{detail}", process.id.pid)
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if all > NAMED_MAX {
        let _ = write!(text, ", and {} more", all - NAMED_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill::Rest;
    use crate::process::{Sender, Who};

    fn options() -> RunOptions {
        RunOptions::new("true").grace(Duration::ZERO)
    }

    fn rest(killed: usize) -> Rest {
        let sender = Who {
            id: ProcessId::new(7, 7),
            name: Some("lifemon-killer".into()),
        };
        let death = Death {
            sender: Some(Sender::Process(sender)),
            ..Death::from_wait_status(9)
        };
        let killed = (0..killed).map(|pid| {
            let id = ProcessId::new(u32::try_from(pid).unwrap(), 5);
            Killed::new(
                Subject::new(id, Some("a\u{1b}".into())),
                Some(death.clone()),
            )
        });
        let mut rest: Rest = serde_json::from_value(serde_json::json!({
            "way": "subreaper", "killed": [], "survivors": [], "complete": true, "elapsed_ms": 1.0,
        }))
        .unwrap();
        rest.killed = killed.collect();
        rest
    }

    fn ended(code: i32, killed: usize) -> Ended {
        Ended {
            command: ProcessId::new(77, 5),
            death: Death::from_wait_status(code << 8),
            rest: rest(killed),
            left_daemons: false,
        }
    }

    #[test]
    fn where_nothing_is_left_nothing_is_printed() {
        assert_eq!(text(&options(), &ended(0, 0)), "");
    }

    #[test]
    fn who_starts_a_daemon_and_succeeds_gets_a_hint() {
        let hints = |code, killed, left_daemons| {
            let ended = Ended {
                left_daemons,
                ..ended(code, killed)
            };
            text(&options(), &ended).contains("--keep-orphans")
        };
        assert!(hints(0, 1, true));
        assert!(!hints(0, 1, false) && !hints(1, 1, true) && !hints(0, 0, true));
    }

    #[test]
    fn names_are_made_safe_and_the_list_ends() {
        let text = text(&options(), &ended(0, NAMED_MAX + 2));
        assert!(text.starts_with(
            "lifemon: 22 processes left behind, killed (subreaper): 0 a\\u{1b} (SIGKILL), "
        ));
        assert!(text.ends_with(", and 2 more\n"), "{text}");
    }

    #[test]
    fn the_object_has_every_field_that_is_known() {
        let text = json(&options(), &ended(3, 1), 3).unwrap();
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        let command = serde_json::json!({"pid": 77, "start_ns": 5, "words": ["true"]});
        assert_eq!((&object["command"], &object["code"]), (&command, &3.into()));
        assert_eq!(object["exit"]["code"], 3);
        assert_eq!(object["killed"][0]["exit"]["signal_name"], "SIGKILL");
        assert_eq!(object.get("incomplete"), None);
        assert_eq!(object.get("why_not_ebpf"), None);
    }
}

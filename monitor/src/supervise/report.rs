//! What `lifemon run` says: nothing where nothing was left, otherwise a few lines on standard error,
//! and one JSON object in a file on request.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::ending::{Rest, exit};
use super::owner::{Ended, RunOptions};
use crate::report::json::SCHEMA;
use crate::report::out::printable;

/// Processes that are named in the text.
const NAMED_MAX: usize = 20;

/// Says on standard error what was left.
pub(super) fn say(options: &RunOptions, ended: &Ended) {
    let text = text(options, &ended.rest);
    // Standard error may be closed; there is nobody to tell then.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes the report.
pub(super) fn write(options: &RunOptions, ended: &Ended, mut file: File) -> io::Result<()> {
    writeln!(file, "{}", object(options, ended))?;
    file.flush()
}

fn object(options: &RunOptions, ended: &Ended) -> Value {
    let rest = &ended.rest;
    let words = options.words.iter();
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let mut object = json!({
        "schema": SCHEMA,
        "command": {
            "pid": ended.command.pid,
            "start_ns": ended.command.start_ns,
            "words": words,
        },
        "exit": exit(ended.status),
        "code": ended.code(),
        "way": rest.way.word(),
        "killed": rest.killed,
        "survivors": rest.survivors,
        "kept": options.keep_orphans,
        "complete": rest.complete,
        "elapsed_ms": rest.elapsed_ms,
    });
    if !rest.incomplete.is_empty() {
        object["incomplete"] = rest.incomplete.clone().into();
    }
    if let Some(why) = &rest.why_not_ebpf {
        object["why_not_ebpf"] = why.as_str().into();
    }
    object
}

fn text(options: &RunOptions, rest: &Rest) -> String {
    let mut text = String::new();
    let way = format!(
        "{}{}",
        rest.way.word(),
        if rest.complete { "" } else { ", not complete" }
    );
    if !rest.killed.is_empty() {
        let _ = writeln!(
            text,
            "lifemon: {} left behind, killed ({way}): {}",
            processes(rest.killed.len()),
            list(&rest.killed, |process| how(&process["exit"])),
        );
    }
    if !rest.survivors.is_empty() {
        let what = if options.keep_orphans {
            "left behind, kept"
        } else {
            "left behind and still alive"
        };
        let _ = writeln!(
            text,
            "lifemon: {} {what} ({way}): {}",
            processes(rest.survivors.len()),
            list(&rest.survivors, |process| {
                process["reason"].as_str().map(str::to_owned)
            }),
        );
    }
    for reason in &rest.incomplete {
        let _ = writeln!(
            text,
            "lifemon: somebody may be missing: {}",
            printable(reason)
        );
    }
    text
}

fn processes(count: usize) -> String {
    match count {
        1 => "1 process".to_owned(),
        count => format!("{count} processes"),
    }
}

fn list(processes: &[Value], detail: impl Fn(&Value) -> Option<String>) -> String {
    let named = processes.iter().take(NAMED_MAX).map(|process| {
        let name = process["name"].as_str().map_or("?".into(), printable);
        let detail = detail(process).map_or_else(String::new, |detail| format!(" ({detail})"));
        format!("{} {name}{detail}", process["pid"])
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if processes.len() > NAMED_MAX {
        let _ = write!(text, ", and {} more", processes.len() - NAMED_MAX);
    }
    text
}

fn how(exit: &Value) -> Option<String> {
    match (exit["signal_name"].as_str(), exit["code"].as_u64()) {
        (Some(signal), _) => Some(signal.to_owned()),
        (None, Some(code)) => Some(format!("code {code}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Way;

    fn options() -> RunOptions {
        RunOptions {
            words: vec!["true".into()],
            signal: libc::SIGTERM,
            grace: std::time::Duration::ZERO,
            keep_orphans: false,
            json: None,
        }
    }

    fn rest(killed: usize) -> Rest {
        let killed = (0..killed).map(|pid| json!({"pid": pid, "name": "a\u{1b}", "exit": exit(9)}));
        Rest {
            way: Way::Subreaper,
            why_not_ebpf: None,
            killed: killed.collect(),
            survivors: Vec::new(),
            complete: true,
            incomplete: Vec::new(),
            elapsed_ms: 1.0,
        }
    }

    #[test]
    fn nothing_left_is_nothing_said() {
        assert_eq!(text(&options(), &rest(0)), "");
    }

    #[test]
    fn names_are_made_safe_and_the_list_ends() {
        let text = text(&options(), &rest(NAMED_MAX + 2));
        assert!(text.starts_with(
            "lifemon: 22 processes left behind, killed (subreaper): 0 a\\u{1b} (SIGKILL), "
        ));
        assert!(text.ends_with(", and 2 more\n"), "{text}");
    }
}

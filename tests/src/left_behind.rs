//! `lifemon orphans`, `tree` and `gpu` with `-o json`, run to their end, and what must hold of every
//! answer.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::story::{is_about, process};
use crate::{DEADLINE, Lifemon, Output, Pidfd, Process};

/// The answer of `lifemon orphans` with these options.
///
/// # Panics
/// When it does not succeed, or says something that cannot be.
#[track_caller]
#[must_use]
pub fn orphans(options: &[&str]) -> Value {
    let output = ask("orphans", options);
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{output:?}"
    );
    let report = output.json();
    check_orphans(&report);
    report
}

/// A command that answers with one object, whatever comes of it.
///
/// # Panics
/// When it does not end.
#[track_caller]
#[must_use]
pub fn ask(command: &str, options: &[&str]) -> Output {
    let words = [command, "-o", "json"];
    Lifemon::find().run(words.iter().chain(options))
}

/// Claims what holds of every list of orphans.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn check_orphans(report: &Value) {
    assert_eq!(report["schema"], "lifemon/1", "{report}");
    assert!(report["complete"].is_boolean(), "{report}");
    let orphans = report["orphans"].as_array().expect("a list");
    let mut seen = BTreeSet::new();
    for orphan in orphans {
        let identity = process(orphan).expect("an identity");
        assert!(seen.insert(identity), "twice: {orphan}");
        let class = orphan["class"].as_str().expect("a class");
        assert!(
            ["stranded", "reparented", "daemon", "inferred"].contains(&class),
            "{orphan}"
        );
        let is_seen = class != "inferred";
        assert_eq!(orphan["creator_exit"].is_object(), is_seen, "{orphan}");
        assert_eq!(orphan["root"].is_object(), is_seen, "{orphan}");
        match class {
            "stranded" => assert_eq!(orphan["root"]["alive"], false, "{orphan}"),
            "reparented" => assert_eq!(orphan["root"]["alive"], true, "{orphan}"),
            _ => assert!(!orphan["evidence"].as_array().expect("evidence").is_empty()),
        }
        assert!(orphan["command"].is_array(), "{orphan}");
    }
}

/// The entry of one process in a list of an answer, if it is there.
#[must_use]
pub fn find(list: &Value, process: Process) -> Option<&Value> {
    let mut entries = list.as_array()?.iter();
    entries.find(|entry| is_about(entry, process))
}

/// The entry of one process in a list of an answer.
///
/// # Panics
/// When it is not there.
#[track_caller]
#[must_use]
pub fn entry(list: &Value, process: Process) -> &Value {
    find(list, process).unwrap_or_else(|| panic!("no {process:?} in {list}"))
}

/// SIGKILL to one process, and waits until it is gone.
///
/// # Panics
/// When it is not there, or does not die.
#[track_caller]
pub fn kill_and_wait(process: Process) {
    let pidfd = Pidfd::of(process);
    pidfd.kill();
    pidfd.wait_gone(DEADLINE);
}

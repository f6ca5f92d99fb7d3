//! `lifemon orphans`, `tree` and `gpu` with `-o json`, run to their end, and what must hold of
//! every answer.

use serde_json::Value;

use crate::reports::{OrphansReport, read, set_of};
use crate::story::is_about;
use crate::{DEADLINE, Lifemon, Output, Pidfd, Process};

/// The answer of `lifemon orphans` with these options.
///
/// # Panics
/// When it does not succeed, or says something that cannot be.
#[track_caller]
#[must_use]
pub fn orphans(options: &[&str]) -> OrphansReport {
    let output = ask("orphans", options);
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{output:?}"
    );
    checked_orphans(&output.json())
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

/// Reads a list of orphans, and claims what holds of every one.
///
/// # Panics
/// When it does not.
#[track_caller]
#[expect(
    clippy::must_use_candidate,
    reason = "what it says matters to few tests"
)]
pub fn checked_orphans(report: &Value) -> OrphansReport {
    let report: OrphansReport = read(report);
    assert_eq!(report.schema, "lifemon/2", "{report:?}");
    let once = set_of(&report.orphans);
    assert_eq!(once.len(), report.orphans.len(), "twice: {report:?}");
    for orphan in &report.orphans {
        let is_seen = orphan.verdict != "inferred" || orphan.creator.is_some();
        assert_eq!(orphan.creator_exit.is_some(), is_seen, "{orphan:?}");
        assert_eq!(orphan.root.is_some(), is_seen, "{orphan:?}");
        let root_is_dead = orphan.root.as_ref().map(|root| !root.alive);
        assert_eq!(orphan.stranded, root_is_dead, "{orphan:?}");
        match orphan.verdict.as_str() {
            "leaked" | "left" => assert_eq!(orphan.evidence, [], "{orphan:?}"),
            "deliberate" | "inferred" => assert!(!orphan.evidence.is_empty(), "{orphan:?}"),
            verdict => panic!("{verdict} is no verdict: {orphan:?}"),
        }
        assert!(orphan.subtree.processes > 0, "{orphan:?}");
        assert!(
            !report.not_shown.contains_key(&orphan.verdict),
            "{report:?}"
        );
    }
    let is_killed = report.kill.is_some();
    assert!(!is_killed || report.spared.is_some(), "{report:?}");
    report
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

//! `lifemon orphans`, `tree` and `gpu` with `-o json`, run to their end, and what must hold of
//! every answer.

use crate::reports::{OrphansReport, TreeReport, set_of};
use crate::{Actor, DEADLINE, Lifemon, Output, Pidfd, Process};

/// Returns the answer of `lifemon orphans` with these options.
///
/// # Panics
/// When it does not succeed, or says something that cannot be.
#[track_caller]
#[must_use]
pub fn orphans(options: &[&str]) -> OrphansReport {
    checked_orphans(ask("orphans", options).success())
}

/// Returns the answer of `lifemon tree` with these options.
///
/// # Panics
/// When it does not succeed.
#[track_caller]
#[must_use]
pub fn tree(options: &[&str]) -> TreeReport {
    let report: TreeReport = ask("tree", options).success();
    assert_eq!(report.schema, "lifemon/2", "{report:?}");
    assert_eq!(report.complete, report.incomplete.is_empty(), "{report:?}");
    report
}

/// Runs a command that answers with one object, whatever comes of it.
///
/// # Panics
/// When it does not end.
#[track_caller]
#[must_use]
pub fn ask(command: &str, options: &[&str]) -> Output {
    let words = [command, "-o", "json"];
    Lifemon::find().run(words.iter().chain(options))
}

/// Claims of a list of orphans what holds of every one.
///
/// # Panics
/// When it does not.
#[track_caller]
#[expect(
    clippy::must_use_candidate,
    reason = "what it says matters to few tests"
)]
pub fn checked_orphans(report: OrphansReport) -> OrphansReport {
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

/// Sends SIGKILL to one process, and waits until it is gone.
///
/// # Panics
/// When it is not there, or does not die.
#[track_caller]
pub fn kill_and_wait(process: Process) {
    let pidfd = Pidfd::of(process);
    pidfd.kill();
    pidfd.wait_gone(DEADLINE);
}

/// Lets the actor `serve` start its server with workers, and kills that; returns it and the
/// workers that it leaves behind.
///
/// # Panics
/// As [`kill_and_wait`].
#[track_caller]
pub fn leave_workers(actor: &mut Actor) -> (Process, Vec<Process>) {
    actor.step();
    let (server, workers) = (actor.child("server"), actor.children("worker"));
    kill_and_wait(server);
    (server, workers)
}

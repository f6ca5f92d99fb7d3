//! `lifemon kill -o json`, run to its end, what must hold of every report, and the oracle that
//! does not ask lifemon: who is left in a sandbox.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use crate::reports::{Identified, KillReport, assert_only_history_is_missing, set_of};
use crate::{Lifemon, Output, Process, Sandbox, proc};

/// Makes two tests of each function: with a tracker that lifemon loads for itself, and with that of
/// the host, switched on before the function makes any process.
#[macro_export]
macro_rules! with_either_tracker {
    ($($name:ident),+ $(,)?) => {
        mod tracker_off {
            $(#[test] fn $name() {
                $crate::needs!(private_tracker);
                super::$name();
            })+
        }
        mod tracker_on {
            $(#[test] fn $name() {
                $crate::needs!(host_tracker);
                super::$name();
            })+
        }
    };
}

/// Kills the tree of one target, with these options. Suspects are accepted: the processes that
/// other tests have left behind share the session of all tests.
///
/// # Panics
/// When lifemon does not start or does not end.
#[track_caller]
#[must_use]
pub fn kill(target: &impl ToString, options: &[&str]) -> Output {
    let target = target.to_string();
    let words = ["kill", &target, "-o", "json", "--accept-suspects"];
    Lifemon::find().run(words.iter().chain(options))
}

/// Claims that the tree is dead and the answer complete, but for history that nobody knows where
/// the root is older than the tracker; the report.
///
/// # Panics
/// When it is not.
#[track_caller]
#[expect(
    clippy::must_use_candidate,
    reason = "what it says matters to few tests"
)]
pub fn assert_killed(output: &Output) -> KillReport {
    let report = checked(output.success());
    assert!(!report.dry_run, "{report:?}");
    assert_eq!(report.survivors, [], "{report:?}");
    assert!(report.extinct, "{report:?}");
    assert_only_history_is_missing(report.complete, &report.incomplete, report.inferred);
    report
}

/// Claims of a report what holds of every one, whatever came of the kill.
///
/// # Panics
/// When it does not.
#[track_caller]
#[expect(
    clippy::must_use_candidate,
    reason = "what it says matters to few tests"
)]
pub fn checked(report: KillReport) -> KillReport {
    assert_eq!(report.schema, "lifemon/2", "{report:?}");
    assert!(report.elapsed_ms >= 0.0, "{report:?}");
    let (killed, survivors) = (once(&report.killed), once(&report.survivors));
    assert!(killed.is_disjoint(&survivors), "{report:?}");
    once(&report.already_dying);
    let mut reasons = report.survivors.iter().map(|survivor| &survivor.reason);
    assert!(reasons.all(|reason| !reason.is_empty()), "{report:?}");
    assert!(!report.extinct || survivors.is_empty(), "{report:?}");
    assert_eq!(report.complete, report.incomplete.is_empty(), "{report:?}");
    report
}

/// Claims that no process is twice in a list; the processes.
#[track_caller]
fn once(list: &[impl Identified + Debug]) -> BTreeSet<Process> {
    let once = set_of(list);
    assert_eq!(once.len(), list.len(), "twice in {list:?}");
    once
}

/// Returns processes of the sandbox that still run; the dead that wait to be reaped are none.
#[must_use]
pub fn alive(sandbox: &Sandbox) -> BTreeSet<i32> {
    let pids = sandbox.pids().into_iter();
    pids.filter(|pid| proc::is_running(*pid)).collect()
}

/// Claims that nothing in the sandbox runs, at this very moment.
///
/// # Panics
/// When something does; the message says what it is doing.
#[track_caller]
pub fn assert_nobody(sandbox: &Sandbox) {
    let left: Vec<_> = alive(sandbox)
        .into_iter()
        .map(|pid| (pid, proc::stat(pid)))
        .collect();
    assert!(left.is_empty(), "survivors: {left:?}");
}

/// Returns the words of 64 bits in a file that actors count in.
///
/// # Panics
/// When it cannot be read.
#[must_use]
#[track_caller]
pub fn words(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).expect("the file that actors count in");
    let words = bytes.chunks_exact(8);
    words
        .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
        .collect()
}

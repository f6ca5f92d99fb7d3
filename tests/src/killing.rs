//! `lifemon kill -o json`, run to its end, what must hold of every report, and the oracle that
//! does not ask lifemon: who is left in a sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::story::processes;
use crate::{Lifemon, Output, Process, Sandbox, proc};

/// Makes two tests of each function: with a tracker that lifemon loads for itself, and with that of the
/// host, switched on before the function makes any process.
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

/// Kills the tree of one target, with these options.
///
/// # Panics
/// When lifemon does not start or does not end.
#[track_caller]
#[must_use]
pub fn kill(target: &impl ToString, options: &[&str]) -> Output {
    let target = target.to_string();
    let words = ["kill", &target, "-o", "json"];
    Lifemon::find().run(words.iter().chain(options))
}

/// Claims that the tree is dead and the answer complete; the report.
///
/// # Panics
/// When it is not.
#[track_caller]
#[expect(
    clippy::must_use_candidate,
    reason = "what it says matters to few tests"
)]
pub fn assert_killed(output: &Output) -> Value {
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{output:?}"
    );
    let report = output.json();
    check_report(&report);
    assert_eq!(report["dry_run"], false, "{report}");
    assert_eq!(report["survivors"], serde_json::json!([]), "{report}");
    assert_eq!(report["extinct"], true, "{report}");
    assert_eq!(report["complete"], true, "{report}");
    report
}

/// Claims what holds of every report, whatever came of the kill.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn check_report(report: &Value) {
    assert_eq!(report["schema"], "lifemon/1", "{report}");
    let tree = &report["tree"];
    assert!(
        tree["pid"].is_u64() && tree["start_ns"].is_u64(),
        "{report}"
    );
    for field in ["dry_run", "extinct", "complete"] {
        assert!(report[field].is_boolean(), "{field}: {report}");
    }
    let elapsed_ms = report["elapsed_ms"].as_f64();
    assert!(elapsed_ms.is_some_and(|ms| ms >= 0.0), "{report}");
    let once = |field: &str| {
        let all = processes(&report[field]);
        let once: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(once.len(), all.len(), "twice in {field}: {report}");
        once
    };
    let (killed, survivors) = (once("killed"), once("survivors"));
    assert!(killed.is_disjoint(&survivors), "{report}");
    once("already_dying");
    for survivor in report["survivors"].as_array().expect("checked above") {
        let reason = survivor["reason"].as_str();
        assert!(reason.is_some_and(|reason| !reason.is_empty()), "{report}");
    }
    assert!(
        report["extinct"] == false || survivors.is_empty(),
        "{report}"
    );
}

/// The processes of one field of a report.
///
/// # Panics
/// When it has no such list.
#[track_caller]
#[must_use]
pub fn set_of(report: &Value, field: &str) -> BTreeSet<Process> {
    processes(&report[field]).into_iter().collect()
}

/// Processes of the sandbox that still run; the dead that wait to be reaped are none.
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

/// The words of 64 bits in a file that actors count in.
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

//! `lifemon run` under test: with and without rights, and its report.

use std::fs;
use std::process::Command;

use lifemon_tests::handicap::{as_nobody, readable_copy};
use lifemon_tests::reports::RunReport;
use lifemon_tests::{DEADLINE, Lifemon, Output, Sandbox, proc, wait_until};

/// How lifemon may work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rights {
    Root,
    Nobody,
}

impl Rights {
    pub(crate) const BOTH: [Self; 2] = [Self::Root, Self::Nobody];

    pub(crate) fn way(self) -> &'static str {
        match self {
            Self::Root => "ebpf",
            Self::Nobody => "subreaper",
        }
    }
}

/// `lifemon run WORDS` in the sandbox.
pub(crate) fn command(sandbox: &Sandbox, rights: Rights, words: &[&str]) -> Command {
    let lifemon = match rights {
        Rights::Root => Lifemon::find(),
        Rights::Nobody => Lifemon::at(readable_copy(sandbox)),
    };
    let mut command = lifemon.inside(sandbox).command(["run"].iter().chain(words));
    if rights == Rights::Nobody {
        as_nobody(&mut command);
    }
    command
}

#[track_caller]
pub(crate) fn run(sandbox: &Sandbox, rights: Rights, words: &[&str]) -> Output {
    Lifemon::find()
        .start(command(sandbox, rights, words))
        .finish(DEADLINE)
}

/// The pid of the guardian: the child of lifemon that has this name.
pub(crate) fn guardian_of(sandbox: &Sandbox, lifemon: i32) -> i32 {
    let mut guardian = None;
    wait_until("the guardian", DEADLINE, || {
        guardian = sandbox.pids().into_iter().find(|pid| {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            proc::ppid(*pid) == Some(lifemon) && name == b"lifemon-guard\n"
        });
        guardian.is_some()
    });
    guardian.expect("waited for")
}

/// The words of a run that keeps what this shell script leaves, with a report.
pub(crate) fn keeping<'a>(report: &'a str, script: &'a str) -> [&'a str; 7] {
    ["--keep-orphans", "--json", report, "--", "sh", "-c", script]
}

/// A place for a report that everybody may write to.
pub(crate) fn report_path(sandbox: &Sandbox) -> String {
    writable_file(sandbox, "report.json")
}

/// An empty file that everybody may write to.
pub(crate) fn writable_file(sandbox: &Sandbox, name: &str) -> String {
    let path = sandbox.directory().join(name);
    fs::write(&path, "").expect("an empty file");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&path, everybody).expect("permissions of the file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[track_caller]
pub(crate) fn read_report(path: &str) -> RunReport {
    let text = fs::read_to_string(path).expect("the report");
    let report: RunReport =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(report.schema, "lifemon/2", "{report:?}");
    assert_eq!(report.complete, report.incomplete.is_empty(), "{report:?}");
    let killed_have_no_reason = report.killed.iter().all(|left| left.reason.is_none());
    let alive_have_no_exit = report.survivors.iter().all(|left| left.exit.is_none());
    assert!(killed_have_no_reason && alive_have_no_exit, "{report:?}");
    report
}

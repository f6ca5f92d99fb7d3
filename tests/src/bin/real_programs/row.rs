//! Does one row of the table: starts the program in a sandbox, waits until its starter has ended,
//! and claims the verdict on what is left. The sandbox ends everything, each by its identity.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use lifemon_tests::reports::{Identified as _, Orphan};
use lifemon_tests::{HostTracker, Sandbox, left_behind, poll};

use crate::install::{self, Installed, Source};

/// How long a program may take to start and its starter to end.
const START: Duration = Duration::from_secs(90);
/// How long the verdict may take to be what it stays: daemons fork more than once.
const VERDICT: Duration = Duration::from_secs(10);
/// How long a verdict must stay the same.
const STAYS: Duration = Duration::from_millis(700);

/// One program, left behind in one way.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) verdict: &'static str,
    pub(crate) source: Source,
    /// Programs that the script needs.
    pub(crate) programs: &'static str,
    /// A part of the command line of what is left.
    pub(crate) left: &'static str,
    /// Run by bash in the directory of the sandbox, `$DIR`. It ends the starter, and ends; or it
    /// makes the file `ready`, and stays.
    pub(crate) script: &'static str,
}

/// How an attempt went.
#[derive(Debug)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    NotTried(String),
}

/// Does one row.
pub(crate) fn attempt(row: &Row, installed: &Installed) -> Outcome {
    let path = install::path();
    let missing = row.programs.split_whitespace().find(|program| {
        let mut places = std::env::split_paths(&path);
        !places.any(|place| place.join(program).is_file())
    });
    if let Some(program) = missing {
        let why = installed.failure(row.source);
        let why = why.map(|why| format!(", and it was not installed: {why}"));
        let why = why.unwrap_or_default();
        return Outcome::NotTried(format!("there is no {program}{why}"));
    }
    // For this row alone: other tests of the host get their turn between two.
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let mut starter = start(row, &sandbox);
    let outcome = look(row, &sandbox, &mut starter);
    drop(sandbox);
    // It was killed with the sandbox, if not before.
    _ = starter.wait();
    drop(tracker);
    match outcome {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Failed(why),
    }
}

fn start(row: &Row, sandbox: &Sandbox) -> Child {
    let directory = sandbox.directory();
    let output = || File::create(directory.join("output")).expect("a file of the sandbox");
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-c"]);
    command.arg(format!("{}\n{}", crate::table::PRELUDE, row.script));
    command.current_dir(directory).env_clear();
    command.env("DIR", directory).env("HOME", directory);
    command.env("LANG", "C.UTF-8").env("TERM", "dumb");
    command.env("PATH", install::path());
    command.env("LD_LIBRARY_PATH", install::libraries());
    command.stdin(Stdio::null());
    command.stdout(output()).stderr(output());
    sandbox.enter(&mut command);
    command.spawn().expect("bash starts")
}

/// Waits for the end of the starter, and for the verdict.
fn look(row: &Row, sandbox: &Sandbox, starter: &mut Child) -> Result<(), String> {
    let ready = sandbox.directory().join("ready");
    let has_ended = poll(START, || {
        let is_over = starter.try_wait().is_ok_and(|status| status.is_some());
        (is_over || ready.exists()).then_some(())
    });
    if has_ended.is_none() {
        return Err(format!("no end of its starter; {}", said(sandbox)));
    }
    let is_as_claimed = || {
        let found = left(row, sandbox);
        !found.is_empty() && found.iter().all(|orphan| orphan.verdict == row.verdict)
    };
    let lasting = poll(VERDICT, || {
        if !is_as_claimed() {
            return None;
        }
        thread::sleep(STAYS);
        is_as_claimed().then_some(())
    });
    lasting.ok_or_else(|| {
        let found = left(row, sandbox);
        if found.is_empty() {
            return format!("nothing of it was found; {}", said(sandbox));
        }
        let each = found.iter().map(|orphan| {
            let evidence = orphan.evidence.iter().map(|evidence| &evidence.kind);
            format!(
                "{} {:?} {:?}, its creator {:?}",
                orphan.verdict,
                orphan.command,
                evidence.collect::<Vec<_>>(),
                orphan.creator_exit
            )
        });
        each.collect::<Vec<_>>().join("; ")
    })
}

/// Returns what is left of the program.
fn left(row: &Row, sandbox: &Sandbox) -> Vec<Orphan> {
    let report = left_behind::orphans(&["--all", "--full"]);
    let own = sandbox.pids();
    let mut found = report.orphans;
    found.retain(|orphan| {
        own.contains(&orphan.process().pid) && orphan.command.join(" ").contains(row.left)
    });
    found
}

/// Returns the end of what it printed.
fn said(sandbox: &Sandbox) -> String {
    let text = std::fs::read(sandbox.directory().join(Path::new("output"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    format!("it said {:?}", lines.into_iter().rev().collect::<Vec<_>>())
}

//! Without a selector, the end of orphans is that of the whole host: a person is shown the plan and
//! asked, and who cannot be asked must have agreed before.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use lifemon_tests::left_behind::ask;
use lifemon_tests::reports::{Identified as _, OrphansReport, entry};
use lifemon_tests::{Actor, DEADLINE, Lifemon, Output, Process, Sandbox, needs, proc};
use nix::pty::openpty;

use super::ways::chain;

const QUESTION: &str = "[y/N] ";

/// Runs a command on a terminal, with its report elsewhere, and answers its question as `answer`
/// does when it is given all that was shown; returns that too. `None` where it asks nothing.
#[track_caller]
fn at_a_terminal(words: &[&str], answer: impl FnOnce(&str) -> &'static str) -> (String, Output) {
    let lifemon = Lifemon::find();
    let pty = openpty(None, None).expect("a terminal");
    let mut command = lifemon.command(words.iter().chain(&["-o", "json"]));
    command.stdin(Stdio::from(pty.slave.try_clone().expect("a copy")));
    command.stderr(Stdio::from(pty.slave));
    let running = lifemon.start(command);
    let mut terminal = File::from(pty.master);
    let mut shown = String::new();
    while !shown.ends_with(QUESTION) {
        let mut bytes = [0; 4096];
        // EIO when lifemon, the last that has the other end, has ended.
        let count = terminal.read(&mut bytes).unwrap_or(0);
        assert!(count > 0, "no question: {shown:?}");
        shown += &String::from_utf8_lossy(&bytes[..count]);
    }
    let answer = answer(&shown);
    terminal.write_all(answer.as_bytes()).expect("it reads");
    (shown, running.finish(DEADLINE))
}

/// Makes a leaked orphan.
#[track_caller]
fn leak(sandbox: &Sandbox) -> (Actor, Process) {
    let (actor, chain) = chain(sandbox, "exec fork:KILL exec").expect("no namespace");
    (actor, chain[1])
}

#[test]
fn a_person_at_a_terminal_is_shown_the_plan_and_asked() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (_actor, orphan) = leak(&sandbox);
    let plan = format!("  leaked  {} actor (1 process)", orphan.pid);
    // The empty answer, and the end of the input, are none that agrees.
    for no in ["n\n", "no\n", "\n", "yesterday\n", "\x04"] {
        let (shown, output) = at_a_terminal(&["orphans", "--kill"], |_| no);
        assert!(shown.contains(&plan), "{shown:?}");
        assert_eq!(output.code, Some(1), "{no:?} {output:?}");
        let report: OrphansReport = output.report();
        assert!(report.kill.is_none(), "{no:?} {report:?}");
        let spared = report.spared.expect("a list");
        assert_eq!(entry(&spared, orphan).reason, "the answer was no");
        assert!(proc::is_running(orphan.pid), "{no:?}");
    }
    // What else of this host has leaked meanwhile is none of this test's business.
    let is_alone = |shown: &str| shown.contains("kill 1 orphan with everything below?");
    let yes = |shown: &str| if is_alone(shown) { "y\n" } else { "n\n" };
    let (shown, output) = at_a_terminal(&["orphans", "--kill"], yes);
    if !is_alone(&shown) {
        return println!("skipped: more than this was left behind on this host: {shown}");
    }
    assert_eq!(output.code, Some(0), "{output:?}");
    let report: OrphansReport = output.report();
    let kill = report.kill.expect("it was agreed to");
    assert_eq!(entry(&kill.killed, orphan).process(), orphan);
    assert_eq!(kill.killed.len(), 1, "{kill:?}");
    assert!(!proc::is_running(orphan.pid));
}

#[test]
fn elsewhere_nothing_is_killed_unless_that_was_agreed_to() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (actor, orphan) = leak(&sandbox);
    let refused = [
        &["orphans", "--kill"][..],
        &["orphans", "--kill", "--gpu"],
        &["orphans", "--kill", "--verdict", "leaked"],
        &["orphans", "--kill", "--left", "--force"],
        &["gpu", "--kill-orphans"],
    ];
    for words in refused {
        let output = Lifemon::find().run(words);
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (Some(2), ""),
            "{words:?} {output:?}"
        );
        assert!(output.stderr.contains("--yes"), "{words:?} {output:?}");
        assert!(proc::is_running(orphan.pid), "{words:?} {output:?}");
    }
    // A terminal that shows the question, and nobody who can answer it.
    let pty = openpty(None, None).expect("a terminal");
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(["orphans", "--kill"]);
    command.stderr(Stdio::from(pty.slave));
    let output = lifemon.start(command).finish(DEADLINE);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(proc::is_running(orphan.pid), "{output:?}");
    // Whoever says which ones is not asked.
    let chosen = ask(
        "orphans",
        &["--kill", "--tree", &actor.pid().to_string(), "--yes"],
    );
    assert_eq!(chosen.code, Some(0), "{chosen:?}");
    assert!(!proc::is_running(orphan.pid), "{chosen:?}");
}

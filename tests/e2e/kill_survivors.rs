//! What `lifemon kill` cannot end at once, because something else holds it: reported as alive with
//! the reason, in time, and dead when it is let go. And what looks as if it were held, and is not.

use std::fs;
use std::time::{Duration, Instant};

use lifemon_tests::killing::{alive, assert_killed, assert_nobody, checked, kill};
use lifemon_tests::reports::{KillReport, assert_only_history_is_missing, set_of};
use lifemon_tests::{
    Actor, DEADLINE, Freezer, Output, Pidfd, Process, Sandbox, actor, proc, wait_until,
    with_either_tracker,
};
use nix::sys::signal::Signal;

/// For a kill that will not succeed.
const TIMEOUT_MS: f64 = 700.0;

/// Kills what cannot die, and claims that the answer is no, in time, with this one alive for this
/// reason.
#[track_caller]
fn assert_survives(target: Process, survivor: Process, reasons: &[&str]) -> KillReport {
    let begun = Instant::now();
    let output = kill(&target.pid, &["--timeout", &format!("{TIMEOUT_MS}ms")]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{output:?}");
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(1), ""),
        "{output:?}"
    );
    let report = checked(output.report());
    assert_eq!(set_of(&report.survivors), [survivor].into(), "{report:?}");
    let reason = &report.survivors[0].reason;
    for word in reasons {
        assert!(reason.contains(word), "no {word:?} in {reason:?}");
    }
    assert!(!report.extinct, "{report:?}");
    assert_only_history_is_missing(report.complete, &report.incomplete, report.inferred);
    assert!(report.elapsed_ms >= TIMEOUT_MS, "gave up early: {report:?}");
    report
}

/// The dead that nobody has reaped are none of the living.
#[track_caller]
fn wait_dead(process: Process) {
    wait_until("its death", DEADLINE, || !proc::is_running(process.pid));
}

fn who_is_frozen_survives_until_thawed() {
    let Some(freezer) = Freezer::new() else {
        return;
    };
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 4);
    actor.step();
    let workers = actor.children("worker");
    freezer.freeze(workers[2]);
    let report = assert_survives(actor.process(), workers[2], &["frozen cgroup", "thaw"]);
    assert_eq!(report.killed.len(), 4, "{report:?}");
    assert_eq!(alive(&sandbox), [workers[2].pid].into());
    freezer.thaw();
    wait_until("the end of all", DEADLINE, || alive(&sandbox).is_empty());
}

fn who_is_held_by_a_tracer_survives_until_let_go() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "traced", "exit");
    actor.step();
    let traced = actor.child("traced");
    let reason = format!("tracer {}", actor.pid());
    assert_survives(traced, traced, &[&reason]);
    assert!(proc::is_running(traced.pid));
    actor.step();
    assert_eq!(actor.reaped(traced.pid)["signal"], libc::SIGKILL);
    assert_eq!(alive(&sandbox), [actor.pid()].into());
}

fn who_waits_for_a_file_system_survives_until_it_answers() {
    let sandbox = Sandbox::new();
    let directory = sandbox.directory().join("mount");
    fs::create_dir(&directory).expect("a directory");
    let mut actor = actor!(sandbox, "stuck", directory.display());
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let stuck = actor.child("stuck");
    assert_survives(stuck, stuck, &["uninterruptible", "state D"]);
    assert_eq!(proc::stat(stuck.pid).map(|stat| stat.state), Some('D'));
    actor.step();
    assert_eq!(actor.reaped(stuck.pid)["signal"], libc::SIGKILL);
    assert_eq!(alive(&sandbox), [actor.pid()].into());
}

fn a_second_kill_finds_what_survived_the_first() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "traced", "exit");
    actor.step();
    let traced = actor.child("traced");
    for _ in 0..2 {
        assert_survives(traced, traced, &["tracer"]);
    }
    actor.step();
    wait_dead(traced);
}

/// Kills the tree of a child of the actor, and claims that it is dead.
#[track_caller]
fn assert_dies(actor: &Actor, child: Process) -> Output {
    let output = kill(&child.pid, &["--timeout", "20s"]);
    assert!(!proc::is_running(child.pid), "{output:?}");
    let report = assert_killed(&output);
    assert_eq!(set_of(&report.killed), [child].into(), "{report:?}");
    assert!(proc::is_running(actor.pid()));
    output
}

fn who_is_stopped_dies_at_once() {
    let sandbox = Sandbox::new();
    let mut traced = actor!(sandbox, "traced", "stop");
    traced.step();
    let child = traced.child("traced");
    assert_eq!(proc::stat(child.pid).map(|stat| stat.state), Some('t'));
    assert_dies(&traced, child);

    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let worker = actor.child("worker");
    let stopped = Pidfd::of(worker).signal(Signal::SIGSTOP);
    stopped.expect("it lives");
    wait_until("its stop", DEADLINE, || {
        proc::stat(worker.pid).is_some_and(|stat| stat.state == 'T')
    });
    assert_dies(&actor, worker);
}

fn who_is_frozen_by_version_2_dies_at_once() {
    let (sandbox, frozen) = (Sandbox::new(), Sandbox::new());
    let file = |name: &str| {
        let mut files = frozen.paths().into_iter().map(|path| path.join(name));
        files.find(|file| file.exists())
    };
    let Some(freeze) = file("cgroup.freeze") else {
        return println!("skipped: this kernel freezes no cgroup of version 2");
    };
    let mut actor = actor!(sandbox, "fork-hold", 3);
    actor.step();
    let workers = actor.children("worker");
    let procs = freeze.with_file_name("cgroup.procs");
    fs::write(procs, workers[1].pid.to_string()).expect("a process that can be moved");
    fs::write(&freeze, "1").expect("a cgroup that can be frozen");
    let events = freeze.with_file_name("cgroup.events");
    wait_until("the frost", DEADLINE, || {
        fs::read_to_string(&events).is_ok_and(|text| text.contains("frozen 1"))
    });
    let output = kill(&actor.pid(), &["--timeout", "20s"]);
    assert_nobody(&sandbox);
    assert_nobody(&frozen);
    assert_eq!(assert_killed(&output).killed.len(), 4);
}

with_either_tracker!(
    who_is_frozen_survives_until_thawed,
    who_is_held_by_a_tracer_survives_until_let_go,
    who_waits_for_a_file_system_survives_until_it_answers,
    a_second_kill_finds_what_survived_the_first,
    who_is_stopped_dies_at_once,
    who_is_frozen_by_version_2_dies_at_once,
);

//! `lifemon run` where it is itself in trouble: killed, nested, without standard streams, as the
//! first process of a pid namespace.

use std::fs;
use std::process::{Command, Stdio};

use lifemon_tests::handicap::{
    as_nobody, in_a_pid_namespace, readable_copy, with_hidden_processes, without_unshare,
};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Lifemon, Output, Pidfd, Sandbox, needs, proc, wait_until};
use nix::errno::Errno;

use crate::run::lifemon_run::{
    Rights, command, guardian_of, keeping, read_report, report_path, run,
};

/// A command with two descendants that it has lost, which says so by three lines.
const FAMILY: &str = "(setsid sleep 101 &); (sleep 102 &); echo; sleep 103";

fn wait_for_family(sandbox: &Sandbox) {
    wait_until("two processes that the command has lost", DEADLINE, || {
        let pids = sandbox.pids();
        let arguments = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ["101", "102", "103"].iter().all(|seconds| {
            let wanted = format!("sleep\0{seconds}\0").into_bytes();
            pids.iter().any(|pid| arguments(pid) == wanted)
        })
    });
}

#[test]
fn whichever_of_its_processes_is_killed_nothing_lingers() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        for kill_the_owner in [true, false] {
            let sandbox = Sandbox::new();
            let words = ["--", "sh", "-c", FAMILY];
            let running = Lifemon::find().start(command(&sandbox, rights, &words));
            let pid = running.pid();
            wait_for_family(&sandbox);
            let victim = if kill_the_owner {
                pid
            } else {
                guardian_of(&sandbox, pid)
            };
            Pidfd::open(victim).expect("it runs").kill();
            let output = running.finish(DEADLINE);
            let expected = if kill_the_owner { None } else { Some(137) };
            assert_eq!(output.code, expected, "{rights:?} {output:?}");
            wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
            assert!(output.stderr.contains("killed"), "{rights:?} {output:?}");
        }
    }
}

/// Executes `su`, which waits for a password: from then on a `/proc` that hides the processes of
/// others hides it from a user without rights.
const HIDES: [&str; 4] = ["--", "sh", "-c", "sleep 0.3; exec su"];

#[test]
fn a_command_that_was_hidden_meanwhile_has_its_own_end_also_without_the_guardian() {
    needs!(su);
    for keeps in [true, false] {
        let sandbox = Sandbox::new();
        let lifemon = Lifemon::at(readable_copy(&sandbox)).inside(&sandbox);
        let options = keeps.then_some("--keep-orphans");
        let words = ["run"].into_iter().chain(options).chain(HIDES);
        let mut command = lifemon.command(words);
        let (password, writer) = std::io::pipe().expect("a pipe");
        command.stdin(password);
        with_hidden_processes(&mut command);
        as_nobody(&mut command);
        let running = Lifemon::find().start(command);
        wait_until("su", DEADLINE, || {
            let is_su = |pid: &i32| {
                let name = fs::read(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name == b"su\n")
            };
            sandbox.pids().iter().any(is_su)
        });
        let guardian = guardian_of(&sandbox, running.pid());
        Pidfd::open(guardian).expect("it runs").kill();
        // Kept, it ends by itself where there is no password; otherwise it is killed.
        let writer = (!keeps).then_some(writer);
        let output = running.finish(DEADLINE);
        drop(writer);
        let expected = if keeps { 1 } else { 137 };
        assert_eq!(output.code, Some(expected), "{output:?}");
        assert_nobody(&sandbox);
    }
}

#[test]
fn a_sandbox_that_forbids_unshare_changes_nothing() {
    for errno in [Errno::EPERM, Errno::ENOSYS, Errno::EINVAL] {
        for rights in Rights::BOTH {
            let sandbox = Sandbox::new();
            let words = ["--", "sh", "-c", "(setsid sleep 101 &); exit 7"];
            let mut command = command(&sandbox, rights, &words);
            without_unshare(&mut command, errno);
            let output = Lifemon::find().start(command).finish(DEADLINE);
            assert_eq!(output.code, Some(7), "{errno} {rights:?} {output:?}");
            assert!(output.stderr.contains("killed"), "{errno} {rights:?}");
            assert_nobody(&sandbox);
        }
    }
}

#[test]
fn what_is_to_be_kept_outlives_the_guardian() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let report = report_path(&sandbox);
    let family = format!("exec >/dev/null 2>&1; {FAMILY}");
    let words = keeping(&report, &family);
    let running = Lifemon::find().start(command(&sandbox, Rights::Root, &words));
    wait_for_family(&sandbox);
    let guardian = guardian_of(&sandbox, running.pid());
    Pidfd::open(guardian).expect("it runs").kill();
    let output = running.finish(DEADLINE);
    assert_eq!(output.code, Some(137), "{output:?}");
    let report = read_report(&report);
    assert_eq!(report.killed, [], "{report:?}");
    assert!(report.survivors.len() >= 2, "{report:?}");
    let mut pids = report.survivors.iter().map(|kept| kept.pid);
    assert!(pids.all(proc::is_running), "{report:?}");
}

/// A run in a run, the inner one with these options: its command leaves one process behind.
#[track_caller]
fn nested(inner: &[&str]) -> Output {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::find();
    let lifemon = lifemon.program().to_str().expect("a path in UTF-8");
    let outer = ["--grace", "0", "--", lifemon, "run"];
    let leaves_one = ["--", "sh", "-c", "(setsid sleep 100 &); exit 4"];
    let words = [&outer[..], inner, &leaves_one].concat();
    let output = run(&sandbox, Rights::Root, &words);
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(4), "{output:?}");
    output
}

#[test]
fn nested_runs_each_answer_for_their_own() {
    needs!(private_tracker);
    let output = nested(&["--grace", "0"]);
    // The inner one says it, and to the outer one nothing is left.
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(
        output.stderr.contains("1 process left behind, killed"),
        "{output:?}"
    );
}

#[test]
fn what_an_inner_run_keeps_the_outer_one_kills() {
    needs!(private_tracker);
    let output = nested(&["--keep-orphans"]);
    assert!(output.stderr.contains("kept"), "{output:?}");
    assert!(output.stderr.contains("killed"), "{output:?}");
}

#[test]
fn closed_standard_streams_change_nothing() {
    needs!(private_tracker);
    let lifemon = Lifemon::find();
    let sandbox = Sandbox::new();
    let script = format!(
        "exec <&- >&- 2>&-; {} run --grace 0 -- sh -c '(setsid sleep 100 &); exit 5'",
        lifemon.program().display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null());
    sandbox.enter(&mut command);
    let status = command.status().expect("a shell");
    assert_eq!(status.code(), Some(5));
    assert_nobody(&sandbox);
}

#[test]
fn as_the_first_process_of_a_pid_namespace_it_reaps_and_cleans_up() {
    let sandbox = Sandbox::new();
    let report = report_path(&sandbox);
    // The guardian is between: process 1 is not the parent of the shell.
    // The pipe ends when the orphan has: it is none of those who are killed.
    let script = "test $PPID != 1 || exit 99; (true &) | cat; (setsid sleep 100 &); exit 6";
    let words = ["--grace", "0", "--json", &report, "--", "sh", "-c", script];
    let mut command = command(&sandbox, Rights::Root, &words);
    in_a_pid_namespace(&mut command);
    let output = Lifemon::find().start(command).finish(DEADLINE);
    assert_eq!(output.code, Some(6), "{output:?}");
    assert_nobody(&sandbox);
    let report = read_report(&report);
    assert_eq!(report.way, "subreaper", "{report:?}");
    let why = report.why_not_ebpf.as_deref().expect("a reason");
    assert!(why.contains("pid namespace"), "{why}");
    assert_eq!(report.killed.len(), 1, "{report:?}");
}

//! `lifemon orphans`: what was left behind, found at the first look, told from what was meant to
//! stay, and killed without touching anybody else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lifemon_tests::killing::alive;
use lifemon_tests::left_behind::{ask, checked_orphans, kill_and_wait, orphans};
use lifemon_tests::reports::{Exit, Identified, Orphan, OrphansReport, entry, find, set_of};
use lifemon_tests::{Actor, Lifemon, Process, Sandbox, actor, needs, private_lock, proc, scaled};

/// A server whose workers `mode` takes over, killed; the actor, the server and the workers.
#[track_caller]
fn killed_server(sandbox: &Sandbox, count: u64, mode: &str) -> (Actor, Process, Vec<Process>) {
    let mut actor = actor!(sandbox, "serve", count, mode);
    actor.step();
    let server = actor.child("server");
    let workers = actor.children("worker");
    assert_eq!(workers.len() as u64, count);
    kill_and_wait(server);
    (actor, server, workers)
}

/// Claims that each of `workers` is reported as leaked by a killed `server`.
#[track_caller]
fn assert_leaked(report: &OrphansReport, server: Process, workers: &[Process], stranded: bool) {
    for worker in workers {
        let orphan = entry(&report.orphans, *worker);
        assert_eq!(process(orphan.creator.as_ref()), Some(server), "{orphan:?}");
        assert_eq!(orphan.verdict, "leaked", "{orphan:?}");
        assert_eq!(orphan.stranded, Some(stranded), "{orphan:?}");
        let exit = |exit: &Exit| (exit.signal, exit.cause.clone());
        let killed = (Some(libc::SIGKILL), "signal".to_owned());
        assert_eq!(orphan.creator_exit.as_ref().map(exit), Some(killed));
        assert_eq!(parent_of(orphan), proc::ppid(worker.pid), "{orphan:?}");
    }
}

/// The process that a field names, if it is there.
fn process(field: Option<&impl Identified>) -> Option<Process> {
    field.map(Identified::process)
}

/// The pid of the parent that it has now.
fn parent_of(orphan: &Orphan) -> Option<i32> {
    orphan.parent.as_ref().map(|parent| parent.pid)
}

/// The words for all that speaks for its verdict.
fn evidence(orphan: &Orphan) -> Vec<&str> {
    let evidence = orphan.evidence.iter();
    evidence.map(|evidence| evidence.kind.as_str()).collect()
}

/// What people ask instead.
fn pgrep_finds_nobody_below(process: Process) {
    let output = Command::new("pgrep")
        .args(["-P", &process.pid.to_string()])
        .output();
    if let Ok(output) = output {
        assert_eq!(output.stdout, b"", "{output:?}");
    }
}

#[test]
fn workers_that_init_took_over() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (actor, server, workers) = killed_server(&sandbox, 3, "init");
    let report = orphans(&[]);
    assert!(report.complete, "{report:?}");
    // The actor, which started the server, is the root of all that, and lives.
    assert_leaked(&report, server, &workers, false);
    let orphan = entry(&report.orphans, workers[0]);
    assert_eq!(
        process(orphan.root.as_ref()),
        Some(actor.process()),
        "{orphan:?}"
    );
    pgrep_finds_nobody_below(server);
}

#[test]
fn workers_that_a_subreaper_took_over() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (mut actor, server, workers) = killed_server(&sandbox, 3, "subreaper");
    let report = orphans(&[]);
    assert_leaked(&report, server, &workers, false);
    for worker in &workers {
        let orphan = entry(&report.orphans, *worker);
        assert_eq!(parent_of(orphan), Some(actor.pid()), "{orphan:?}");
    }
    // With the root gone they are stranded.
    actor.kill();
    assert_leaked(&orphans(&[]), server, &workers, true);
}

#[test]
fn workers_in_a_pid_namespace() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (mut actor, server, workers) = killed_server(&sandbox, 3, "namespace");
    let report = orphans(&[]);
    assert_leaked(&report, server, &workers, false);
    let init = actor.child("ns-init");
    for worker in &workers {
        let orphan = entry(&report.orphans, *worker);
        assert_eq!(process(orphan.parent.as_ref()), Some(init), "{orphan:?}");
        assert_ne!(orphan.ns_pid, Some(worker.pid), "{orphan:?}");
    }
}

#[test]
fn workers_of_a_server_under_a_shell() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let script = "exec 3<&0; \"$0\" \"$@\" <&3 & wait; sleep 60";
    let words = ["-c", script, env!("CARGO_BIN_EXE_actor"), "serve-here", "3"];
    let words = words.map(str::to_owned);
    let mut server = Actor::spawn(Path::new("/bin/sh"), &sandbox, &words);
    server.step();
    let workers = server.children("worker");
    kill_and_wait(server.process());
    assert_leaked(&orphans(&[]), server.process(), &workers, false);
    // The end of the shell as well.
    server.kill();
    assert_leaked(&orphans(&[]), server.process(), &workers, true);
}

#[test]
fn a_double_fork_is_an_orphan_of_a_creator_that_exited() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "daemonise", "half");
    actor.step();
    let report = orphans(&[]);
    let orphan = entry(&report.orphans, actor.child("daemon"));
    assert_eq!(
        process(orphan.creator.as_ref()),
        Some(actor.child("middle"))
    );
    let exit = orphan.creator_exit.as_ref();
    assert_eq!(exit.and_then(|exit| exit.code), Some(0), "{orphan:?}");
    assert_eq!(
        (orphan.verdict.as_str(), orphan.stranded),
        ("left", Some(false)),
        "{orphan:?}"
    );
}

#[test]
fn daemons_are_told_from_orphans_and_are_spared() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    for how in ["classic", "program"] {
        let mut actor = actor!(sandbox, "daemonise", how);
        actor.step();
        let daemon = actor.child("daemon");
        let tree = actor.pid().to_string();
        let report = orphans(&["--tree", &tree]);
        assert_eq!(report.orphans, [], "{report:?}");
        assert_eq!(report.not_shown["deliberate"], 1, "{report:?}");
        let report = orphans(&["--tree", &tree, "--all"]);
        let orphan = entry(&report.orphans, daemon);
        assert_eq!(orphan.verdict, "deliberate", "{orphan:?}");
        let evidence = evidence(orphan);
        assert!(evidence.contains(&"own_session"), "{evidence:?}");

        // Others of this session may look like orphans of it too: only this one is meant.
        let own = format!("^(.*actor daemonise {how}|some-daemon)$");
        let only = ["--tree", &tree, "--all", "--match", &own, "--kill"];
        let spared = ask("orphans", &only);
        assert_eq!(spared.code, Some(1), "{spared:?}");
        let list = checked_orphans(spared.report()).spared.expect("a list");
        let reason = &entry(&list, daemon).reason;
        assert!(reason.contains("--force"), "{spared:?}");
        assert!(proc::is_running(daemon.pid), "{spared:?}");
        let forced = ask("orphans", &[&only[..], &["--force"]].concat());
        assert_eq!(forced.code, Some(0), "{forced:?}");
        assert!(!proc::is_running(daemon.pid), "{forced:?}");
    }
}

#[test]
fn what_is_older_than_tracking_is_inferred_and_spared() {
    let sandbox = Sandbox::new();
    let lock = private_lock();
    // In the session of the actor, adopted by somebody in another one.
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let workers = actor.children("worker");
    kill_and_wait(actor.child("server"));
    drop(lock);
    needs!(host_tracker);
    let report = orphans(&[]);
    for worker in &workers {
        assert!(find(&report.orphans, *worker).is_none(), "{report:?}");
    }
    let report = orphans(&["--all"]);
    for worker in &workers {
        let orphan = entry(&report.orphans, *worker);
        assert_eq!(orphan.verdict, "inferred", "{orphan:?}");
        assert!(orphan.creator.is_none(), "{orphan:?}");
        assert!(
            evidence(orphan).contains(&"session_of_others"),
            "{orphan:?}"
        );
    }
    // With a tree that is known: what they have in common with it.
    let tree = actor.pid().to_string();
    let report = orphans(&["--all", "--tree", &tree]);
    let orphan = entry(&report.orphans, workers[0]);
    assert!(evidence(orphan).contains(&"shared_session"), "{orphan:?}");
    let spared = ask("orphans", &["--all", "--tree", &tree, "--kill"]);
    assert_eq!(spared.code, Some(1), "{spared:?}");
    assert!(workers.iter().all(|worker| proc::is_running(worker.pid)));
}

#[test]
fn without_the_tracker_it_says_that_it_cannot_know() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let (_actor, _, workers) = killed_server(&sandbox, 1, "init");
    let report = orphans(&[]);
    assert!(!report.complete, "{report:?}");
    assert_eq!(report.incomplete[0].reason, "no_history", "{report:?}");
    assert!(find(&report.orphans, workers[0]).is_none(), "{report:?}");
}

#[test]
fn only_what_was_left_behind_is_killed() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let name = "VLLM::EngineCore";
    let mut healthy = actor!(sandbox, "serve", 3, "init", name);
    healthy.step();
    let mut broken = actor!(sandbox, "serve", 3, "init", name);
    broken.step();
    let left: BTreeSet<_> = broken.children("worker").into_iter().collect();
    kill_and_wait(broken.child("server"));

    let checked = ask(
        "orphans",
        &["--match", "^VLLM::EngineCore --worker$", "--check"],
    );
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let killed = ask("orphans", &["--match", "VLLM::EngineCore", "--kill"]);
    assert_eq!(
        (killed.code, killed.stderr.as_str()),
        (Some(0), ""),
        "{killed:?}"
    );
    let report = checked_orphans(killed.report());
    assert_eq!(set_of(&report.orphans), left);
    assert_eq!(set_of(&report.kill.expect("a kill").killed), left);
    let workers = healthy.children("worker");
    let expected: BTreeSet<_> = [healthy.pid(), healthy.child("server").pid, broken.pid()]
        .into_iter()
        .chain(workers.iter().map(|worker| worker.pid))
        .collect();
    assert_eq!(alive(&sandbox), expected);
    let checked = ask("orphans", &["--match", "VLLM::EngineCore", "--check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn very_many_at_once() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let count = scaled(2_000);
    let (actor, server, workers) = killed_server(&sandbox, count, "init");
    let report = orphans(&["--tree", &server.pid.to_string()]);
    let expected: BTreeSet<_> = workers.into_iter().collect();
    assert_eq!(set_of(&report.orphans), expected);
    let killed = ask("orphans", &["--tree", &server.pid.to_string(), "--kill"]);
    assert_eq!(killed.code, Some(0), "{}", killed.stderr);
    assert_eq!(alive(&sandbox), [actor.pid()].into());
}

#[test]
fn odd_command_lines() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "odd-commands");
    actor.step();
    let server = actor.child("server");
    kill_and_wait(server);
    let tree = server.pid.to_string();
    let report = orphans(&["--tree", &tree]);
    let command = |actor: &mut Actor, role: &str| {
        let orphan = entry(&report.orphans, actor.child(role));
        orphan.command.clone()
    };
    assert_eq!(command(&mut actor, "newline"), ["two\nlines", "\r"]);
    assert_eq!(command(&mut actor, "invalid"), ["not\u{fffd}\u{fffd}text"]);
    assert_eq!(command(&mut actor, "empty"), [""; 0]);
    let escape = "\u{1b}[31mred\u{1b}]0;title\u{7}";
    assert_eq!(command(&mut actor, "escape"), [escape]);
    let long = command(&mut actor, "long");
    // As much as an answer has of any.
    assert_eq!(long[1].len(), 4 * 1024 - "long".len() - 1);
    let long = entry(&report.orphans, actor.child("long"));
    assert!(long.truncated, "{long:?}");

    for words in [["orphans", "--full"], ["tree", "--full"]] {
        let text = Lifemon::find().run(words);
        assert_eq!(text.code, Some(0), "{}", text.stderr);
        assert!(!text.stdout.contains('\u{1b}'), "a raw escape sequence");
        assert!(!text.stdout.contains('\r'), "a raw carriage return");
        assert!(text.stdout.contains("two\\nlines"));
    }
    let long = actor.child("long").pid.to_string();
    let text = Lifemon::find().run(["orphans", "--tree", &tree]);
    let line = text.stdout.lines().find(|line| line.contains(&long));
    assert!(line.is_some_and(|line| line.len() < 400), "{text:?}");
    let matched = orphans(&["--match", "x{1000}"]);
    assert_eq!(set_of(&matched.orphans), [actor.child("long")].into());
}

#[test]
fn orphans_that_die_while_they_are_looked_at() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("made");
    // Every process of it is an orphan the moment its creator exits.
    let mut actor = actor!(sandbox, "slow-comet", file.display(), "init");
    actor.step();
    for _ in 0..scaled(20) {
        let output = ask("orphans", &["--all"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        checked_orphans(output.report());
    }
}

#[test]
fn a_proc_that_hides_processes_of_others() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let (_actor, server, workers) = killed_server(&sandbox, 2, "init");
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(["orphans", "-o", "json"]);
    lifemon_tests::handicap::with_hidden_processes(&mut command);
    let output = lifemon.start(command).finish(lifemon_tests::DEADLINE);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    // Root sees all of them there, whatever the mount hides from users.
    assert_leaked(&checked_orphans(output.report()), server, &workers, false);
}

#[test]
fn a_pattern_that_is_none_is_wrong_usage() {
    for words in [
        &["orphans", "--match", "("][..],
        &["orphans", "--device", "/dev/[a"],
        &["orphans", "--force"],
        &["orphans", "--check", "--kill"],
        &["orphans", "--yes"],
        &["orphans", "--left"],
        &["orphans", "--verdict", "stranded"],
        &["orphans", "--verdict", "left", "--all"],
        &["orphans", "--user", "no-such-user"],
        // Without a selector, and nobody to ask.
        &["orphans", "--kill"],
        &["orphans", "--kill", "--gpu"],
        &["gpu", "--kill-orphans"],
    ] {
        let output = Lifemon::find().run(words);
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(!output.stderr.contains("panicked"), "{output:?}");
    }
}

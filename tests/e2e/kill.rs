//! `lifemon kill` on trees that hold still: every member dies wherever it went, nobody else does,
//! and the report names exactly those who died.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use lifemon_tests::killing::{alive, assert_killed, assert_nobody, checked, kill, words};
use lifemon_tests::reports::{Identified, KillReport, KillsReport, entry, set_of};
use lifemon_tests::{
    Actor, DEADLINE, Lifemon, Process, Sandbox, actor, needs, proc, wait_until, with_either_tracker,
};
use nix::unistd::{Pid, getsid};

/// The code that a process of the report has exited with.
#[track_caller]
fn code_of(report: &KillReport, process: Process) -> Option<i32> {
    entry(&report.killed, process).exit.as_ref()?.code
}

/// The signal that has ended a process of the report.
#[track_caller]
fn signal_of(report: &KillReport, process: Process) -> Option<i32> {
    entry(&report.killed, process).exit.as_ref()?.signal
}

/// All of one role, and the actor itself.
fn with_root(actor: &Actor, roles: &[&str]) -> BTreeSet<Process> {
    let children = roles.iter().flat_map(|role| actor.children(role));
    children.chain([actor.process()]).collect()
}

fn every_member_dies_and_the_report_names_it() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 30);
    actor.step();
    let tree = with_root(&actor, &["worker"]);
    assert_eq!(alive(&sandbox).len(), 31);
    let output = kill(&actor.pid(), &[]);
    assert_nobody(&sandbox);
    let report = assert_killed(&output);
    assert_eq!(report.tree.process(), actor.process());
    assert_eq!(set_of(&report.killed), tree);
    assert_eq!(report.already_dying, [], "{report:?}");
    for process in &tree {
        let exit = entry(&report.killed, *process).exit.as_ref();
        let how = exit.map(|exit| (exit.signal, exit.cause.as_str()));
        assert_eq!(how, Some((Some(libc::SIGKILL), "signal")));
    }
    assert!(Some(report.elapsed_ms) <= report.gone_ms, "{report:?}");
}

fn those_who_left_die_as_well() {
    let (sandbox, elsewhere) = (Sandbox::new(), Sandbox::new());
    let groups: Vec<_> = elsewhere
        .paths()
        .into_iter()
        .map(|path| path.join("cgroup.procs"))
        .filter(|file| file.exists())
        .map(|file| file.display().to_string())
        .collect();
    let behaviour = ["scatter".to_owned()].into_iter().chain(groups);
    let words: Vec<_> = behaviour.collect();
    let mut actor = Actor::spawn(env!("CARGO_BIN_EXE_actor").as_ref(), &sandbox, &words);
    actor.step();
    let roles = [
        "cgroup",
        "session",
        "group",
        "user",
        "unsharer",
        "namespace",
    ];
    let tree = with_root(&actor, &roles);
    assert_eq!(tree.len(), 7);
    let left = actor.child("cgroup").pid;
    assert!(elsewhere.pids().contains(&left), "{left} has not moved");
    let output = kill(&actor.pid(), &[]);
    assert_nobody(&sandbox);
    assert_nobody(&elsewhere);
    assert_eq!(set_of(&assert_killed(&output).killed), tree);
}

fn who_shares_name_session_and_group_is_untouched() {
    let sandbox = Sandbox::new();
    let mut doomed = actor!(sandbox, "fork-hold", 5);
    doomed.step();
    let mut other = actor!(sandbox, "fork-hold", 5);
    other.step();
    let session = |actor: &Actor| getsid(Some(Pid::from_raw(actor.pid())));
    assert_eq!(session(&doomed), session(&other));
    let output = kill(&doomed.pid(), &[]);
    let rest: BTreeSet<_> = with_root(&other, &["worker"]);
    let pids: BTreeSet<_> = rest.iter().map(|process| process.pid).collect();
    assert_eq!(alive(&sandbox), pids);
    assert_killed(&output);
    other.close();
    assert_eq!(other.wait().code(), Some(0));
}

fn a_dry_run_kills_nobody_and_names_everybody() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let tree = with_root(&actor, &["mid", "leaf"]);
    let before = alive(&sandbox);
    let output = kill(&actor.pid(), &["--dry-run"]);
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{output:?}"
    );
    let report = checked(output.report());
    assert!(report.dry_run && !report.extinct, "{report:?}");
    assert_eq!(set_of(&report.members), tree);
    assert_eq!(
        (&report.killed[..], &report.survivors[..]),
        (&[][..], &[][..])
    );
    assert_eq!(report.already_dying, []);
    let [root, mid, leaf] = [actor.process(), actor.child("mid"), actor.child("leaf")];
    for (process, creator) in [(mid, root), (leaf, mid)] {
        let member = entry(&report.members, process);
        let created_by = member.creator.as_ref().map(Identified::process);
        assert_eq!(created_by, Some(creator), "{member:?}");
    }

    let text = Lifemon::find().run(["kill", &root.pid.to_string(), "--dry-run"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("3 processes would die"), "{text:?}");
    assert!(text.stdout.contains("the root"), "{text:?}");
    for creator in [root, mid] {
        let why = format!("created by {}", creator.pid);
        assert!(text.stdout.contains(&why), "no {why}: {text:?}");
    }
    assert_eq!(alive(&sandbox), before);
    actor.command("spawn-leaf");
}

fn several_trees_in_one_command() {
    let sandbox = Sandbox::new();
    let mut actors = [(); 3].map(|()| actor!(sandbox, "fork-hold", 4));
    actors.iter_mut().for_each(Actor::step);
    let pids: Vec<_> = actors.iter().map(|actor| actor.pid().to_string()).collect();
    let words = ["kill", "-o", "json", "--accept-suspects"].map(str::to_owned);
    let output = Lifemon::find().run(words.iter().chain(&pids));
    assert_nobody(&sandbox);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let all: KillsReport = output.report();
    assert_eq!(all.kills.len(), 3, "{output:?}");
    assert!(all.extinct && !all.dry_run, "{output:?}");
    for (actor, report) in actors.iter().zip(all.kills) {
        let report = checked(report);
        assert_eq!(set_of(&report.killed), with_root(actor, &["worker"]));
    }
}

/// What `lifemon kill $(pgrep NAME)` comes to: a process, and others below it.
fn a_tree_and_parts_of_it_in_one_command() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let processes = [actor.process(), actor.child("mid"), actor.child("leaf")];
    let pids = processes.map(|process| process.pid.to_string());
    let output = Lifemon::find().run(
        ["kill", "--accept-suspects"]
            .map(str::to_owned)
            .iter()
            .chain(&pids),
    );
    assert_nobody(&sandbox);
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{output:?}"
    );
}

fn one_that_is_not_there_does_not_save_the_others() {
    let sandbox = Sandbox::new();
    let [mut first, mut last] = [(); 2].map(|()| actor!(sandbox, "fork-hold", 2));
    first.step();
    last.step();
    let pids = [first.pid(), i32::MAX, last.pid()].map(|pid| pid.to_string());
    let output = Lifemon::find().run(["kill"].map(str::to_owned).iter().chain(&pids));
    assert_eq!(output.code, Some(4), "{output:?}");
    assert!(output.stderr.contains("2147483647"), "{output:?}");
    // Either all that can be killed is, or nothing: never what happened to be named first.
    let left = alive(&sandbox);
    assert!(
        left.is_empty() || left.len() == 6,
        "{left:?} of {first:?} and {last:?}: {output:?}"
    );
}

fn two_kills_at_once_of_a_tree_in_a_tree() {
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("beats");
    let mut actor = actor!(sandbox, "pulse", 20, file.display());
    actor.step();
    let inner = Process {
        pid: i32::try_from(words(&file)[0]).expect("a pid"),
        start_ticks: 0,
    };
    let lifemon = Lifemon::find();
    let start = |pid: i32, options: &[&str]| {
        let pid = pid.to_string();
        let words = ["kill", &pid, "-o", "json", "--accept-suspects"];
        lifemon.start(lifemon.command(words.iter().chain(options)))
    };
    let of_inner = start(inner.pid, &["--signal", "TERM", "--grace", "15s"]);
    wait_until("the first signal", DEADLINE, || words(&file)[2] > 0);
    let of_outer = start(actor.pid(), &[]);
    let outer = of_outer.finish(DEADLINE);
    assert_nobody(&sandbox);
    let (outer, inner) = (
        assert_killed(&outer),
        assert_killed(&of_inner.finish(DEADLINE)),
    );
    assert_eq!(set_of(&outer.killed).len(), 21, "{outer:?}");
    assert_eq!(set_of(&inner.killed).len(), 1, "{inner:?}");
}

fn who_ends_when_asked_is_not_killed() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "polite", 6, 0);
    actor.step();
    let output = kill(&actor.pid(), &["--signal", "TERM", "--grace", "15s"]);
    assert_nobody(&sandbox);
    let report = assert_killed(&output);
    let elapsed_ms = report.elapsed_ms;
    assert!(elapsed_ms < 10_000.0, "waited in vain: {report:?}");
    assert_eq!(actor.wait().code(), Some(5));
    assert_eq!(code_of(&report, actor.process()), Some(5));
    for child in actor.children("good") {
        assert_eq!(actor.reaped(child.pid)["code"], 3);
        assert_eq!(code_of(&report, child), Some(3));
    }
}

fn who_does_not_end_when_asked_is_killed_after_the_grace() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "polite", 3, 3);
    actor.step();
    let output = kill(&actor.pid(), &["--signal", "15", "--grace", "700ms"]);
    assert_nobody(&sandbox);
    let report = assert_killed(&output);
    let elapsed_ms = report.elapsed_ms;
    assert!(elapsed_ms >= 700.0, "no grace: {report:?}");
    for child in actor.children("good") {
        assert_eq!(actor.reaped(child.pid)["code"], 3);
        assert_eq!(code_of(&report, child), Some(3));
    }
    for child in actor.children("bad") {
        assert_eq!(signal_of(&report, child), Some(9));
    }
}

with_either_tracker!(
    every_member_dies_and_the_report_names_it,
    those_who_left_die_as_well,
    who_shares_name_session_and_group_is_untouched,
    a_dry_run_kills_nobody_and_names_everybody,
    several_trees_in_one_command,
    a_tree_and_parts_of_it_in_one_command,
    one_that_is_not_there_does_not_save_the_others,
    two_kills_at_once_of_a_tree_in_a_tree,
    who_ends_when_asked_is_not_killed,
    who_does_not_end_when_asked_is_killed_after_the_grace,
);

#[test]
fn the_descendants_of_a_dead_root_die() {
    needs!(host_tracker);
    for exactly in [false, true] {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "double-fork");
        actor.step();
        let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));
        assert_eq!(proc::stat(middle.pid), None);
        let mut target = middle.pid.to_string();
        if exactly {
            let report = checked(kill(&target, &["--dry-run"]).report());
            target = format!("{target}@{}", report.tree.start_ns);
        }
        let output = kill(&target, &[]);
        assert_eq!(alive(&sandbox), [actor.pid()].into());
        let report = assert_killed(&output);
        assert_eq!(report.tree.process(), middle);
        assert_eq!(set_of(&report.killed), [grandchild].into());
    }
}

#[test]
fn orphans_of_the_dead_in_the_middle_die_with_the_root() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "chain", 50);
    actor.step();
    let output = kill(&actor.pid(), &[]);
    assert_nobody(&sandbox);
    let report = assert_killed(&output);
    assert_eq!(set_of(&report.killed), with_root(&actor, &["last"]));
}

/// lifemon runs below the shell whose tree it kills: all of that dies but lifemon, which reports.
#[test]
fn a_shell_that_kills_itself_by_force() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let script = "sleep 50 & \"$0\" kill $$ --force -o json; echo 'still here'";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(Lifemon::find().program());
    sandbox.enter(&mut shell);
    // Until the end of the pipe: the shell, which was waited for, is dead long before lifemon ends.
    let output = shell.output().expect("a shell");
    assert_eq!(output.status.code(), None, "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let report = checked(report);
    assert_eq!(report.killed.len(), 2, "{report:?}");
    assert!(report.extinct && report.complete, "{report:?}");
    wait_until("the end of lifemon", Duration::from_secs(5), || {
        alive(&sandbox).is_empty()
    });
}

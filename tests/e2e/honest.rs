//! What lifemon does not know it says, and what it says is so: a tracker that may not be read, a
//! `/proc` that hides processes, pids and starts that are not those that were meant, what is left
//! of a watcher's knowledge, and what the doctor finds by trying.

use std::fs;
use std::process::Command;

use lifemon_tests::handicap::{
    as_nobody, as_nobody_with, readable_copy, with_capabilities, with_directory_over,
    with_hidden_processes,
};
use lifemon_tests::killing::{alive, checked, kill};
use lifemon_tests::left_behind::kill_and_wait;
use lifemon_tests::reports::{DoctorReport, Orphaned, OrphansReport, entry, find};
use lifemon_tests::{
    DEADLINE, Freezer, HostTracker, Lifemon, Output, OwnMounts, Sandbox, Toll, actor, needs, proc,
    run_alone, wait_until,
};
use serde_json::Value;

const CAP_KILL: u64 = 5;
const CAP_PERFMON: u64 = 38;
const CAP_BPF: u64 = 39;

/// Where a watcher's knowledge is kept.
const LEFT: &str = "/run/lifemon/left";

/// Runs these words as a command that was changed.
#[track_caller]
fn run(words: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(words);
    change(&mut command);
    lifemon.start(command).finish(DEADLINE)
}

/// Returns the reasons why an answer is not complete.
fn reasons(answer: &Value) -> Vec<&str> {
    assert_eq!(answer["complete"], false, "{answer}");
    let reasons = answer["incomplete"].as_array().expect("reasons").iter();
    reasons
        .map(|it| it["reason"].as_str().expect("a word"))
        .collect()
}

#[test]
fn a_tracker_that_is_on_and_not_readable_is_never_said_to_be_off() {
    let _host = HostTracker::off();
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::at(readable_copy(&sandbox));
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    for (options, reason) in [
        (Some("mode=0755"), "tracker_unreadable"),
        (None, "tracker_unreadable"),
        (Some("mode=0700"), "tracker_hidden"),
    ] {
        let mounts = OwnMounts::new(options);
        let at = |words: &[&str], change: &dyn Fn(&mut Command)| {
            let mut command = lifemon.command(words);
            mounts.enter(&mut command);
            change(&mut command);
            lifemon.start(command).finish(DEADLINE)
        };
        assert_eq!(at(&["track", "on"], &|_| {}).code, Some(0));
        let as_user = |words: &[&str]| {
            at(words, &|command| {
                as_nobody_with(command, &[CAP_BPF, CAP_PERFMON]);
            })
        };
        for words in [
            &["kill", &pid, "--dry-run", "-o", "json"][..],
            &["tree", &pid, "-o", "json"],
            &["orphans", "-o", "json"],
            &["gpu", "-o", "json"],
        ] {
            let output = as_user(words);
            assert_eq!(
                (output.code, output.stderr.as_str()),
                (Some(0), ""),
                "{output:?}"
            );
            assert_eq!(
                reasons(&output.report())[0],
                reason,
                "{options:?}: {output:?}"
            );
        }
        let attach = as_user(&["attach", &pid, "--for", "1ms", "-o", "json"]);
        let first = attach.stdout.lines().next().expect("a line");
        let first: Value = serde_json::from_str(first).expect("JSON");
        assert_eq!(reasons(&first)[0], reason, "{attach:?}");
        let status = as_user(&["track", "status", "-o", "json"]);
        assert_eq!(status.code, Some(1), "{status:?}");
        assert_eq!(status.report::<Value>()["tracker"], reason, "{status:?}");
        for words in [&["track", "status"][..], &["doctor"], &["tree", &pid]] {
            let text = as_user(words).stdout;
            let says = if reason == "tracker_hidden" {
                "whether the tracker is on is not visible for you"
            } else {
                "the tracker is on, but not readable for you"
            };
            assert!(text.contains(says), "{words:?}: {text}");
            assert!(
                !text.contains("is off") && !text.contains(" off;"),
                "{words:?}: {text}"
            );
        }
        assert_eq!(at(&["track", "off"], &|_| {}).code, Some(0));
    }
}

#[test]
fn who_is_hidden_is_not_said_to_be_dying() {
    needs!(private_tracker);
    let Some(freezer) = Freezer::new() else {
        return;
    };
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let worker = actor.child("worker");
    freezer.freeze(worker);
    let pid = worker.pid.to_string();
    let empty = sandbox.directory().join("empty");
    fs::create_dir(&empty).expect("a directory");
    let lifemon = Lifemon::at(readable_copy(&sandbox));
    for (is_hidden, why) in [(true, "/proc hides"), (false, "/proc is not mounted")] {
        let run = |words: &[&str]| {
            let mut command = lifemon.command(words);
            if is_hidden {
                with_hidden_processes(&mut command);
                // No more than the documentation asks for.
                as_nobody_with(&mut command, &[CAP_KILL, CAP_BPF, CAP_PERFMON]);
            } else {
                with_directory_over(&mut command, &empty, "/proc");
            }
            lifemon.start(command).finish(DEADLINE)
        };
        let output = run(&["kill", &pid, "--timeout", "300ms", "-o", "json"]);
        assert_eq!(output.code, Some(1), "{output:?}");
        let report = checked(output.report());
        let reason = &entry(&report.survivors, worker).reason;
        assert!(
            reason.contains(why) && !reason.contains("dying"),
            "{report:?}"
        );
        let tree = run(&["tree", &pid, "-o", "json"]).report();
        assert!(reasons(&tree).contains(&"proc_hidden"), "{tree}");
    }
    freezer.thaw();
    wait_until("its end", DEADLINE, || !proc::is_running(worker.pid));
}

/// A control group can be named by whoever may make one.
#[test]
fn the_name_of_a_control_group_does_nothing_to_a_terminal() {
    needs!(private_tracker);
    let Some(freezer) = Freezer::named("\u{1b}]0;mine\u{7}\u{9b}31m\u{202e}") else {
        return;
    };
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 1);
    actor.step();
    let worker = actor.child("worker");
    freezer.freeze(worker);
    for format in ["text", "json"] {
        let pid = worker.pid.to_string();
        let words = [
            "kill",
            &pid,
            "--timeout",
            "100ms",
            "--accept-suspects",
            "-o",
            format,
        ];
        let output = Lifemon::find().run(words);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stdout.contains("frozen cgroup"), "{output:?}");
        let is_raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.stdout.contains(is_raw), "{output:?}");
    }
    freezer.thaw();
}

/// The pid passes to another process after the command was typed.
#[test]
fn a_bare_pid_is_never_somebody_younger_than_the_command() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "heir");
    actor.step();
    let first = actor.child("first");
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(["kill", &first.pid.to_string()]);
    let mut toll = Toll::on(&mut command, libc::SYS_bpf);
    let running = lifemon.start(command);
    let held = toll.next(&running).expect("a look at the kernel");
    actor.step();
    let heir = actor.child("heir");
    assert_eq!(heir.pid, first.pid);
    toll.let_go(&held);
    toll.let_all_go(&running);
    let output = running.finish(DEADLINE);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(4), ""),
        "{output:?}"
    );
    for words in ["younger than this command", &format!("{}@", heir.pid)] {
        assert!(output.stderr.contains(words), "no {words:?}: {output:?}");
    }
    assert!(proc::is_running(heir.pid), "{output:?}");
    // Named after the fact, it is the one that is meant.
    assert_eq!(kill(&heir.pid, &[]).code, Some(0));
}

#[test]
fn a_pid_of_a_ghost_and_of_somebody_new_is_neither() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "heir", "orphan");
    actor.step();
    let (first, orphan) = (actor.child("first"), actor.child("orphan"));
    actor.step();
    let heir = actor.child("heir");
    assert_eq!(heir.pid, first.pid);
    let pid = heir.pid.to_string();
    let mut names = Vec::new();
    for words in [&["orphans", "--check", "--tree", &pid][..], &["kill", &pid]] {
        let output = Lifemon::find().run(words);
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (Some(4), ""),
            "{output:?}"
        );
        let words = output
            .stderr
            .split([' ', '(', ')'])
            .filter(|word| word.starts_with(&format!("{pid}@")));
        names = words.map(str::to_owned).collect();
        assert_eq!(names.len(), 2, "{output:?}");
    }
    assert!(proc::is_running(heir.pid) && proc::is_running(orphan.pid));
    // Who lives first, then the ghost.
    let report: OrphansReport = Lifemon::find()
        .run(["orphans", "--tree", &names[1], "-o", "json"])
        .report();
    assert!(find(&report.orphans, orphan).is_some(), "{report:?}");
    assert_eq!(kill(&names[0], &[]).code, Some(0));
    assert!(!proc::is_running(heir.pid) && proc::is_running(orphan.pid));
}

#[test]
fn the_identity_in_the_report_of_run_is_exact_and_one_rounded_to_a_tick_is_understood() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("report");
    let report = file.to_str().expect("a path");
    let script = "sleep 50 & sleep .1; exit 3";
    let words = [
        "run",
        "--keep-orphans",
        "--json",
        report,
        "--",
        "sh",
        "-c",
        script,
    ];
    let output = Lifemon::find().inside(&sandbox).run(words);
    assert_eq!(output.code, Some(3), "{output:?}");
    let text = fs::read_to_string(&file).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let (command, left) = (&report["command"], &report["survivors"][0]);
    let (pid, start_ns) = (
        &command["pid"],
        command["start_ns"].as_u64().expect("a number"),
    );
    let tick = 10_000_000;
    for start_ns in [start_ns, start_ns / tick * tick] {
        let tree = format!("{pid}@{start_ns}");
        let output = Lifemon::find().run(["orphans", "--tree", &tree, "-o", "json"]);
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (Some(0), ""),
            "{output:?}"
        );
        let orphans: OrphansReport = output.report();
        let orphan = &orphans.orphans[0];
        let creator = orphan.creator.as_ref().expect("a creator");
        assert_eq!(
            Some(creator.start_ns),
            command["start_ns"].as_u64(),
            "{text}"
        );
        assert_eq!(Some(orphan.start_ns), left["start_ns"].as_u64(), "{text}");
    }
    // No tick, so it is exact, and of nobody.
    let other = format!("{pid}@{}", start_ns + 1);
    assert_eq!(
        Lifemon::find().run(["orphans", "--tree", &other]).code,
        Some(4)
    );
}

#[test]
fn what_attach_has_seen_left_behind_is_named_by_the_next_orphans() {
    needs!(private_tracker);
    let mounts = OwnMounts::new(Some("mode=0700"));
    let inside = |words: &[&str]| run(words, |command| mounts.enter(command));
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let (server, workers) = (actor.child("server"), actor.children("worker"));
    let mut healthy = actor!(sandbox, "serve", 1, "init");
    healthy.step();
    let twin = healthy.child("worker");
    let lifemon = Lifemon::find();
    let mut command = lifemon.command(["attach", &server.pid.to_string(), "-o", "json"]);
    mounts.enter(&mut command);
    let mut stream = lifemon.stream_of(command);
    stream.attached();
    kill_and_wait(server);
    stream.wait_for_line("an orphan", |_: &Orphaned| true);
    stream.interrupt();
    assert_eq!(stream.finish().code, Some(0));

    let output = inside(&["orphans", "-o", "json"]);
    let report: OrphansReport = output.report();
    for worker in &workers {
        let orphan = entry(&report.orphans, *worker);
        assert_eq!(orphan.evidence[0].kind, "left_behind", "{orphan:?}");
        let root = server.pid.to_string();
        assert!(orphan.evidence[0].text.contains(&root), "{orphan:?}");
    }
    assert!(find(&report.orphans, twin).is_none(), "{report:?}");
    // Who is not certain is not killed.
    let spared = inside(&["orphans", "--kill"]);
    assert!(
        workers.iter().all(|worker| proc::is_running(worker.pid)),
        "{spared:?}"
    );

    // Root's alone: what others may write is not read.
    mounts.as_root(&["chmod", "0777", LEFT]);
    let distrusted: OrphansReport = inside(&["orphans", "-o", "json"]).report();
    assert!(
        find(&distrusted.orphans, workers[0]).is_none(),
        "{distrusted:?}"
    );
    mounts.as_root(&["chmod", "0700", LEFT]);
    mounts.as_root(&["touch", &format!("{LEFT}/1-5"), &format!("{LEFT}/foreign")]);

    // Nothing stays of those who are gone.
    kill_and_wait(workers[0]);
    let report: OrphansReport = inside(&["orphans", "-o", "json"]).report();
    assert!(find(&report.orphans, workers[0]).is_none(), "{report:?}");
    assert!(find(&report.orphans, workers[1]).is_some(), "{report:?}");
    let kept = fs::read_dir(mounts.path(LEFT))
        .expect("a directory")
        .count();
    assert_eq!(kept, 1);
    kill_and_wait(workers[1]);
    assert_eq!(inside(&["orphans"]).code, Some(0));
    assert!(!mounts.path("/run/lifemon").exists());
    assert!(alive(&sandbox).contains(&twin.pid));
}

/// Claims what the doctor finds of one thing, and that there is a remedy.
#[track_caller]
fn assert_finds(output: &Output, name: &str, state: &str, detail: &str) {
    let report: DoctorReport = output.report();
    let check = report.check(name);
    assert_eq!(check.state, state, "{check:?}");
    assert!(check.detail.contains(detail), "{check:?}");
    assert_eq!(check.remedy.is_some(), state != "ok", "{check:?}");
}

#[test]
fn the_doctor_tries_what_it_claims() {
    const WORDS: [&str; 3] = ["doctor", "-o", "json"];
    let lifemon = Lifemon::find();
    let well = run_alone(&lifemon, &WORDS, |_| {});
    for name in ["user namespace", "kill", "pins", "signals", "/proc"] {
        let report: DoctorReport = well.report();
        assert_eq!(report.check(name).state, "ok", "{report:?}");
    }

    let mut unshare = Command::new("unshare");
    unshare
        .args(["--user", "--map-root-user"])
        .arg(lifemon.program())
        .args(WORDS);
    let namespaced = unshare.output().expect("unshare");
    let namespaced = Output {
        code: namespaced.status.code(),
        stdout: String::from_utf8(namespaced.stdout).expect("text"),
        stderr: String::new(),
    };
    assert_eq!(namespaced.code, Some(1), "{namespaced:?}");
    assert_finds(&namespaced, "user namespace", "failed", "one of its own");

    let sandbox = Sandbox::new();
    let copy = Lifemon::at(readable_copy(&sandbox));
    let nobody = run_alone(&copy, &WORDS, as_nobody);
    assert_finds(&nobody, "signals", "degraded", "CAP_KILL");
    assert_finds(&nobody, "kill", "skipped", "not tried");
    assert_finds(&nobody, "pins", "degraded", "only root");

    let poor = run_alone(&lifemon, &WORDS, |command| {
        with_capabilities(command, &[CAP_BPF, CAP_PERFMON]);
    });
    assert_finds(&poor, "signals", "degraded", "CAP_KILL");
    let report: DoctorReport = poor.report();
    // Linux 7.0 and newer can want more, for both.
    if report.check("programs").state == "ok" {
        assert_finds(&poor, "kill", "ok", "the proof was complete");
    }
    let hidden = run_alone(&copy, &WORDS, |command| {
        with_hidden_processes(command);
        as_nobody_with(command, &[CAP_BPF, CAP_PERFMON]);
    });
    assert_finds(&hidden, "/proc", "degraded", "hides");
    let seen = run_alone(&lifemon, &WORDS, with_hidden_processes);
    assert_finds(&seen, "/proc", "ok", "every process");

    let _host = HostTracker::off();
    let mounts = OwnMounts::new(Some("mode=0700"));
    let inside = || run(&WORDS, |command| mounts.enter(command));
    assert_finds(&inside(), "pins", "ok", "may be written");
    mounts.as_root(&["mount", "-o", "remount,ro", "/sys/fs/bpf"]);
    assert_finds(&inside(), "pins", "degraded", "read-only");
}

//! `lifemon run`: the command's own end, and what becomes of what it leaves behind.

pub(crate) mod lifemon_run;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use lifemon_run::{Rights, command, keeping, read_report, report_path, run, writable_file};
use lifemon_tests::handicap::{as_nobody, ignoring_children, readable_copy, with_hidden_processes};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::reports::RunReport;
use lifemon_tests::{DEADLINE, Lifemon, Output, Pidfd, Sandbox, needs, proc, wait_until};
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// Pids in the lines that an actor has printed.
fn daemons(output: &Output) -> Vec<i32> {
    let lines = output.stdout.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    let daemons = lines.filter(|line| line["role"] == "daemon");
    let pid = |line: Value| i32::try_from(line["child"].as_i64()?).ok();
    daemons.filter_map(pid).collect()
}

/// Returns what the first reason says why a report is not complete.
fn advice(report: &RunReport) -> &str {
    let advice = report.incomplete[0].advice.as_deref();
    advice.expect("a sentence")
}

#[test]
fn the_code_is_that_of_the_command_and_nothing_is_said() {
    let sandbox = Sandbox::new();
    for rights in Rights::BOTH {
        let output = run(
            &sandbox,
            rights,
            &["--", "sh", "-c", "echo out; echo err >&2; exit 9"],
        );
        let said = (output.stdout.as_str(), output.stderr.as_str());
        assert_eq!((output.code, said), (Some(9), ("out\n", "err\n")));
    }
}

#[test]
fn a_command_that_does_not_exist_is_127_and_one_that_may_not_run_is_126() {
    let sandbox = Sandbox::new();
    let text = sandbox.directory().join("text");
    fs::write(&text, "no program").expect("a file");
    let text = text.to_str().expect("a path in UTF-8");
    let directory = sandbox.directory().to_str().expect("a path in UTF-8");
    let cases = [
        (127, "no-such-command-anywhere"),
        (127, "/no/such/command"),
        (126, text),
        (126, directory),
    ];
    for (code, word) in cases {
        let output = run(&sandbox, Rights::Root, &["--", word]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(code), ""));
        let is_one_line = output.stderr.lines().count() == 1;
        assert!(is_one_line && output.stderr.contains(word), "{output:?}");
        assert_nobody(&sandbox);
    }
}

#[test]
fn what_lifemon_itself_cannot_do_is_125_and_the_command_does_not_run() {
    let sandbox = Sandbox::new();
    let words = ["--json", "/no/such/directory/report", "--", "echo", "ran"];
    let output = run(&sandbox, Rights::Root, &words);
    assert_eq!((output.code, output.stdout.as_str()), (Some(125), ""));
    assert!(
        output.stderr.contains("/no/such/directory/report"),
        "{output:?}"
    );
}

#[test]
fn options_of_the_command_are_its_own() {
    let sandbox = Sandbox::new();
    for words in [["--", "echo", "-o", "--json"], ["echo", "-o", "--json", ""]] {
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let output = run(&sandbox, Rights::Root, &words);
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (Some(0), "-o --json\n")
        );
    }
}

#[test]
fn ten_ways_to_stay_behind_end_with_the_command() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let report = report_path(&sandbox);
        let words = [
            "--grace", "200ms", "--json", &report, "--", ACTOR, "daemons", "7",
        ];
        let output = run(&sandbox, rights, &words);
        assert_nobody(&sandbox);
        assert_eq!(output.code, Some(7), "{output:?}");
        let left = daemons(&output);
        assert_eq!(left.len(), 11, "{output:?}");
        let report = read_report(&report);
        assert_eq!(report.way, rights.way(), "{report:?}");
        assert_eq!((report.complete, report.code), (true, 7), "{report:?}");
        assert_eq!(report.survivors, [], "{report:?}");
        for pid in left {
            let dead = report.killed(pid);
            let signal = dead.exit.as_ref().and_then(|exit| exit.signal);
            assert!(matches!(signal, Some(9 | 15)), "{dead:?}");
        }
        let first = output.stderr.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("lifemon: 11 processes left behind, killed ("),
            "{first}"
        );
    }
}

#[test]
fn the_hosts_tracker_is_used_where_it_is_on() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let report = report_path(&sandbox);
    let words = [
        "--grace", "0", "--json", &report, "--", ACTOR, "daemons", "0",
    ];
    let output = run(&sandbox, Rights::Root, &words);
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(0), "{output:?}");
    let report = read_report(&report);
    assert_eq!((report.way.as_str(), report.complete), ("ebpf", true));
}

#[test]
fn who_ends_at_the_first_signal_is_not_killed() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let report = report_path(&sandbox);
        let polite = "trap 'exit 5' USR1; echo; while :; do sleep 0.01; done";
        let script = format!("(setsid sh -c \"{polite}\" & ) | read line; exit 0");
        let words = [
            "--signal", "USR1", "--grace", "60s", "--json", &report, "--", "sh", "-c",
        ];
        let begun = Instant::now();
        let output = run(&sandbox, rights, &[&words[..], &[&script]].concat());
        assert!(begun.elapsed() < Duration::from_secs(30), "{output:?}");
        assert_nobody(&sandbox);
        let report = read_report(&report);
        let exits = report.killed.iter().filter_map(|dead| dead.exit.as_ref());
        let mut codes = exits.map(|exit| exit.code);
        assert!(codes.any(|code| code == Some(5)), "{report:?}");
    }
}

#[test]
fn who_asks_again_does_not_wait_for_the_grace() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let script = "trap '' TERM; (setsid sleep 100 &); exit 3";
        let words = ["--grace", "100s", "--", "sh", "-c", script];
        let running = Lifemon::find().start(command(&sandbox, rights, &words));
        let pid = running.pid();
        wait_until("the end of the command", DEADLINE, || {
            let pids = sandbox.pids().into_iter();
            let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let names: Vec<_> = pids.map(name).collect();
            names.contains(&"sleep\n".to_owned()) && !names.contains(&"sh\n".to_owned())
        });
        let lifemon = Pidfd::open(pid).expect("lifemon runs");
        let begun = Instant::now();
        wait_until("the end after a second request", DEADLINE, || {
            let _ = lifemon.signal(nix::sys::signal::Signal::SIGTERM);
            !proc::is_running(pid)
        });
        assert!(begun.elapsed() < Duration::from_secs(30));
        let output = running.finish(DEADLINE);
        assert_eq!(output.code, Some(3), "{output:?}");
        assert_nobody(&sandbox);
    }
}

#[test]
fn orphans_are_kept_on_request_and_named() {
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let report = report_path(&sandbox);
        let words = [
            "--keep-orphans",
            "--json",
            &report,
            "--",
            ACTOR,
            "daemons",
            "0",
        ];
        let output = run(&sandbox, rights, &words);
        assert_eq!(output.code, Some(0), "{output:?}");
        let left = daemons(&output);
        let report = read_report(&report);
        assert!(report.complete && report.kept, "{report:?}");
        for pid in left {
            assert!(proc::is_running(pid));
            assert_eq!(report.survivor(pid).reason, None);
        }
        assert!(output.stderr.contains("left behind, kept"), "{output:?}");
    }
}

/// Each generation dies at once, and the next one lives: two looks never see the same.
#[test]
fn who_is_kept_and_never_stands_still_is_in_doubt() {
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let report = report_path(&sandbox);
        // It ends by itself.
        let next = r#"test $N = 0 || N=$(($N - 1)) sh -c "$NEXT" &"#;
        let script = format!(
            "exec >/dev/null 2>&1; export N=5000 NEXT='{next}'; setsid sh -c \"$NEXT\" & sleep 0.1"
        );
        let output = run(&sandbox, rights, &keeping(&report, &script));
        assert_eq!(output.code, Some(0), "{output:?}");
        let report = read_report(&report);
        // On a busy machine one generation can last for as long as it is looked for.
        if report.complete {
            assert_ne!(report.survivors, [], "{:?} {output:?}", sandbox.pids());
            continue;
        }
        assert!(advice(&report).contains("came and went"), "{report:?}");
        assert!(
            output.stderr.contains("somebody may be missing"),
            "{output:?}"
        );
    }
}

#[test]
fn where_proc_hides_processes_that_is_a_doubt() {
    let sandbox = Sandbox::new();
    let report = report_path(&sandbox);
    let lifemon = Lifemon::at(readable_copy(&sandbox)).inside(&sandbox);
    let keep = |script: &str| {
        let words = ["run", "--keep-orphans", "--json", &report, "--"];
        let mut command = lifemon.command(words.iter().chain(&["sh", "-c", script]));
        with_hidden_processes(&mut command);
        as_nobody(&mut command);
        let output = Lifemon::find().start(command).finish(DEADLINE);
        assert_eq!(output.code, Some(3), "{output:?}");
        read_report(&report)
    };
    // That nothing is left the kernel says itself.
    assert!(keep("exit 3").complete);
    let report = keep("exec >/dev/null 2>&1; sleep 100 & exit 3");
    assert!(!report.complete, "{report:?}");
    assert!(advice(&report).contains("hides"), "{report:?}");
}

/// Who starts lifemon may ignore SIGCHLD, and that is inherited.
#[test]
fn where_dead_children_are_ignored_the_end_is_known_all_the_same() {
    needs!(private_tracker);
    for rights in Rights::BOTH {
        let sandbox = Sandbox::new();
        let output = |words: &[&str]| {
            let words = [&["--grace", "0", "--"], words].concat();
            let mut command = command(&sandbox, rights, &words);
            ignoring_children(&mut command);
            let output = Lifemon::find().start(command).finish(DEADLINE);
            assert_nobody(&sandbox);
            output
        };
        let left = output(&["sh", "-c", "(setsid sleep 100 &); exit 3"]);
        assert_eq!(left.code, Some(3), "{left:?}");
        // The command finds it as it was.
        let found = output(&["grep", "SigIgn", "/proc/self/status"]);
        let mask = found.stdout.split_whitespace().nth(1).expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        assert_eq!(mask >> (libc::SIGCHLD - 1) & 1, 1, "{found:?}");
    }
}

/// Its leader is a zombie, and its other thread waits.
#[test]
fn who_lives_on_without_its_leader_is_named_and_killed() {
    needs!(private_tracker);
    for (rights, keep) in [
        (Rights::Root, true),
        (Rights::Nobody, true),
        (Rights::Root, false),
        (Rights::Nobody, false),
    ] {
        let sandbox = Sandbox::new();
        let report = report_path(&sandbox);
        let said = writable_file(&sandbox, "said");
        let script = format!(
            "exec 2>/dev/null
             (echo; exec sleep 100) | setsid {ACTOR} leader-exits-first 0 >{said} &
             until grep -q leader_exited {said}; do sleep 0.01; done"
        );
        let what = if keep { "--keep-orphans" } else { "--grace=0" };
        let words = [what, "--json", &report, "--", "sh", "-c", &script];
        let begun = Instant::now();
        let output = run(&sandbox, rights, &words);
        assert!(begun.elapsed() < Duration::from_secs(15), "{output:?}");
        assert_eq!(output.code, Some(0), "{output:?}");
        let said = fs::read_to_string(said).expect("what the actor said");
        let ready: Value =
            serde_json::from_str(said.lines().next().expect("a line")).expect("JSON");
        let report = read_report(&report);
        assert!(report.complete, "{report:?}");
        let (listed, other) = if keep {
            (&report.survivors, &report.killed)
        } else {
            (&report.killed, &report.survivors)
        };
        assert!(
            listed.iter().any(|left| ready["pid"] == left.pid),
            "{report:?}"
        );
        assert_eq!(*other, [], "{report:?}");
        if !keep {
            assert_nobody(&sandbox);
        }
    }
}

#[test]
fn what_forks_while_it_is_killed_dies_as_well() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    // Bounded in count by the sandbox, in time by each loop.
    let bomb = "i=0; while [ $i -lt 2000 ]; do (sleep 5 &) ; i=$((i+1)); done";
    let script =
        format!("trap '' TERM; (setsid sh -c '{bomb}' >/dev/null 2>&1 &); sleep 0.2; exit 0");
    let words = ["--grace", "0", "--", "sh", "-c", &script];
    let output = run(&sandbox, Rights::Root, &words);
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.contains("(ebpf)"), "{output:?}");
}

#[test]
fn the_command_has_the_limits_and_the_mask_that_lifemon_was_given() {
    let sandbox = Sandbox::new();
    let script = "grep -E 'Sig(Blk|Ign)' /proc/self/status; grep 'open files' /proc/self/limits";
    let plain = {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        sandbox.enter(&mut command);
        command.output().expect("a shell").stdout
    };
    let output = run(&sandbox, Rights::Root, &["--", "sh", "-c", script]);
    assert_eq!(output.stdout, String::from_utf8_lossy(&plain));
}

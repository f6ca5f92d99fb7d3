//! `lifemon run`: the command's own end, what becomes of what it leaves behind, and what happens
//! when one of lifemon's two processes is killed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifemon_tests::handicap::{as_nobody, in_a_pid_namespace, readable_copy};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{
    DEADLINE, HostTracker, Lifemon, Output, Pidfd, Sandbox, private_lock, proc, wait_until,
};
use serde_json::Value;

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

/// How lifemon may work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rights {
    Root,
    Nobody,
}

impl Rights {
    const BOTH: [Self; 2] = [Self::Root, Self::Nobody];

    fn way(self) -> &'static str {
        match self {
            Self::Root => "ebpf",
            Self::Nobody => "subreaper",
        }
    }
}

/// `lifemon run WORDS` in the sandbox.
fn command(sandbox: &Sandbox, rights: Rights, words: &[&str]) -> Command {
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
fn run(sandbox: &Sandbox, rights: Rights, words: &[&str]) -> Output {
    Lifemon::find()
        .start(command(sandbox, rights, words))
        .finish(DEADLINE)
}

/// A place for a report that everybody may write to.
fn report_path(sandbox: &Sandbox) -> String {
    let path = sandbox.directory().join("report.json");
    fs::write(&path, "").expect("an empty report");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&path, everybody).expect("permissions of the report");
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[track_caller]
fn read_report(path: &str) -> Value {
    let text = fs::read_to_string(path).expect("the report");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Pids in the lines that an actor has printed.
fn daemons(output: &Output) -> Vec<u64> {
    let lines = output.stdout.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    let daemons = lines.filter(|line| line["role"] == "daemon");
    daemons.filter_map(|line| line["child"].as_u64()).collect()
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
    let _lock = private_lock();
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
        assert_eq!(report["way"], rights.way(), "{report}");
        assert_eq!(
            (&report["complete"], &report["code"]),
            (&true.into(), &7.into())
        );
        assert_eq!(report["survivors"], serde_json::json!([]), "{report}");
        let killed = report["killed"].as_array().expect("a list");
        for pid in left {
            let dead = killed.iter().find(|dead| dead["pid"] == pid);
            let dead = dead.unwrap_or_else(|| panic!("{pid} is not in {report}"));
            let signal = dead["exit"]["signal"].as_u64();
            assert!(matches!(signal, Some(9 | 15)), "{dead}");
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
    let _tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let report = report_path(&sandbox);
    let words = [
        "--grace", "0", "--json", &report, "--", ACTOR, "daemons", "0",
    ];
    let output = run(&sandbox, Rights::Root, &words);
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(0), "{output:?}");
    let report = read_report(&report);
    assert_eq!(
        (&report["way"], &report["complete"]),
        (&"ebpf".into(), &true.into())
    );
}

#[test]
fn who_ends_at_the_first_signal_is_not_killed() {
    let _lock = private_lock();
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
        let killed = report["killed"].as_array().expect("a list");
        assert!(
            killed.iter().any(|dead| dead["exit"]["code"] == 5),
            "{report}"
        );
    }
}

#[test]
fn who_asks_again_does_not_wait_for_the_grace() {
    let _lock = private_lock();
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
        for pid in left {
            assert!(proc::is_running(i32::try_from(pid).expect("a pid")));
            let listed = report["survivors"].as_array().expect("a list");
            assert!(listed.iter().any(|kept| kept["pid"] == pid), "{report}");
        }
        assert!(output.stderr.contains("left behind, kept"), "{output:?}");
    }
}

/// The pid of the nursery: the only child of lifemon.
fn nursery_of(sandbox: &Sandbox, lifemon: i32) -> i32 {
    let mut nursery = None;
    wait_until("the nursery", DEADLINE, || {
        nursery = sandbox
            .pids()
            .into_iter()
            .find(|pid| proc::ppid(*pid) == Some(lifemon));
        nursery.is_some()
    });
    nursery.expect("waited for")
}

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
    let _lock = private_lock();
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
                nursery_of(&sandbox, pid)
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

#[test]
fn nested_runs_each_answer_for_their_own() {
    let _lock = private_lock();
    let lifemon = Lifemon::find();
    let lifemon = lifemon
        .program()
        .to_str()
        .expect("a path in UTF-8")
        .to_owned();
    let sandbox = Sandbox::new();
    let inner = "(setsid sleep 100 &); exit 4";
    let words = [
        "--grace", "0", "--", &lifemon, "run", "--grace", "0", "--", "sh", "-c", inner,
    ];
    let output = run(&sandbox, Rights::Root, &words);
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(4), "{output:?}");
    // The inner one says it, and to the outer one nothing is left.
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(
        output.stderr.contains("1 process left behind, killed"),
        "{output:?}"
    );
}

#[test]
fn what_an_inner_run_keeps_the_outer_one_kills() {
    let _lock = private_lock();
    let lifemon = Lifemon::find();
    let lifemon = lifemon
        .program()
        .to_str()
        .expect("a path in UTF-8")
        .to_owned();
    let sandbox = Sandbox::new();
    let script = "(setsid sleep 100 &); exit 4";
    let inner = [
        lifemon.as_str(),
        "run",
        "--keep-orphans",
        "--",
        "sh",
        "-c",
        script,
    ];
    let output = run(
        &sandbox,
        Rights::Root,
        &[&["--grace", "0", "--"], &inner[..]].concat(),
    );
    assert_nobody(&sandbox);
    assert_eq!(output.code, Some(4), "{output:?}");
    assert!(output.stderr.contains("kept"), "{output:?}");
    assert!(output.stderr.contains("killed"), "{output:?}");
}

#[test]
fn closed_standard_streams_change_nothing() {
    let _lock = private_lock();
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
    // The nursery is between: process 1 is not the parent of the shell.
    let script = "test $PPID != 1 || exit 99; (true &); (setsid sleep 100 &); exit 6";
    let words = ["--grace", "0", "--json", &report, "--", "sh", "-c", script];
    let mut command = command(&sandbox, Rights::Root, &words);
    in_a_pid_namespace(&mut command);
    let output = Lifemon::find().start(command).finish(DEADLINE);
    assert_eq!(output.code, Some(6), "{output:?}");
    assert_nobody(&sandbox);
    let report = read_report(&report);
    assert_eq!(report["way"], "subreaper", "{report}");
    let why = report["why_not_ebpf"].as_str().expect("a reason");
    assert!(why.contains("pid namespace"), "{why}");
    let killed = report["killed"].as_array().expect("a list");
    assert_eq!(killed.len(), 1, "{report}");
}

#[test]
fn what_forks_while_it_is_killed_dies_as_well() {
    let _lock = private_lock();
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

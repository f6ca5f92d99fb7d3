//! The manager used as a library, without the server around it: the end by its own word, the exact
//! kill of any tree, and the cleanup of what other servers have left.

mod process;

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifemon::manager::{Options, ProcessManager, Scope, StartError, WorkerCommand};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Pidfd, Sandbox, needs, proc, wait_until};
use nix::sys::signal::Signal;
use process::Process;

/// It becomes the guardian: a test does not call what has to come first in `main`.
const GUARDIAN: &str = env!("CARGO_BIN_EXE_server");

/// The workers here do not listen.
const PATIENCE: Duration = Duration::from_millis(100);

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let limited = tokio::time::timeout(DEADLINE, future).await;
        limited.expect("an end in time")
    })
}

/// Workers that run this shell script in the sandbox.
fn options(sandbox: &Sandbox, workers: usize, script: &str) -> Options {
    let worker = WorkerCommand::new("sh")
        .arg("-c")
        .arg(enter(sandbox) + script);
    Options::new(vec![worker; workers])
        .guardian(GUARDIAN)
        .signals(false)
        .shutdown_timeout(PATIENCE)
        .kill_timeout(PATIENCE)
}

/// The words with which a shell enters the sandbox.
fn enter(sandbox: &Sandbox) -> String {
    let groups: Vec<_> = sandbox
        .paths()
        .into_iter()
        .map(|path| path.join("cgroup.procs"))
        .filter(|procs| procs.exists())
        .map(|procs| procs.display().to_string())
        .collect();
    format!(
        "for procs in {}; do echo $$ >$procs; done; ",
        groups.join(" ")
    )
}

/// A shell in the sandbox, of no manager.
fn shell(sandbox: &Sandbox, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    sandbox.enter(&mut command);
    command.spawn().expect("a shell")
}

/// Living processes of the sandbox with this in their command lines, in the order of their pids.
fn with(sandbox: &Sandbox, part: &str) -> Vec<i32> {
    let mut pids = sandbox.pids();
    pids.retain(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        proc::is_running(*pid) && String::from_utf8_lossy(&line).contains(part)
    });
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[track_caller]
fn wait_for(sandbox: &Sandbox, part: &str, count: usize) -> Vec<i32> {
    wait_until("the processes", DEADLINE, || {
        with(sandbox, part).len() == count
    });
    with(sandbox, part)
}

#[test]
fn monitoring_ends_with_the_last_worker_and_leaves_nothing() {
    needs!(private_tracker);
    for use_ebpf in [true, false] {
        let sandbox = Sandbox::new();
        let script = "(setsid sleep 1001 &); sleep 1002 & wait";
        let options = options(&sandbox, 2, script).use_ebpf(use_ebpf);
        let finished = run(async {
            let manager = ProcessManager::start(options).await.expect("a manager");
            wait_for(&sandbox, "sleep\u{0}1001", 2);
            wait_for(&sandbox, "sleep\u{0}1002", 2);
            let pids = manager.pids();
            let kill = |worker: usize| {
                let pid = pids[worker].expect("it has started").cast_signed();
                Pidfd::open(pid).expect("it lives").kill();
            };
            kill(0);
            // One is not all.
            let monitored = manager.monitor_workers();
            let early = tokio::time::timeout(Duration::from_millis(200), monitored);
            assert!(early.await.is_err());
            assert!(manager.check_workers_alive().is_err());
            kill(1);
            manager.monitor_workers().await
        });
        assert_eq!(finished.code, 1, "{finished:?}");
        let rest = finished.rest.expect("the guardian's word");
        assert!(rest.complete && rest.survivors.is_empty(), "{rest:?}");
        // Of each worker the sleeper in its session and the other one.
        assert_eq!(rest.killed.len(), 4, "{rest:?}");
        assert_nobody(&sandbox);
    }
}

#[test]
fn any_tree_can_be_killed_exactly() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let options = options(&sandbox, 1, "sleep 1001 & wait");
    let mut tree = shell(
        &sandbox,
        "setsid sleep 1003 & sleep 1003 & sleep 1003 & wait",
    );
    let mut beside = shell(&sandbox, "sleep 1004 & wait");
    wait_for(&sandbox, "sleep\u{0}1003", 3);
    let bystanders = [
        wait_for(&sandbox, "sleep\u{0}1004", 1),
        vec![beside.id().cast_signed()],
    ];
    run(async {
        let manager = ProcessManager::start(options).await.expect("a manager");
        let killed = manager.kill_process_tree(tree.id()).await;
        assert_eq!(killed.expect("root may kill"), 4);
        assert_eq!(with(&sandbox, "1003"), [] as [i32; 0]);
        assert!(manager.check_workers_alive().is_ok());
        // Its pid is kept by the zombie, and nobody is hit twice.
        assert!(manager.kill_process_tree(tree.id()).await.is_err());
        tree.wait().expect("a zombie");
        assert_eq!(manager.shutdown().await.code, 0);
    });
    for pid in bystanders.concat() {
        assert!(proc::is_running(pid), "{pid} was hit");
    }
    Pidfd::open(beside.id().cast_signed())
        .expect("it lives")
        .kill();
    beside.wait().expect("a zombie");
}

/// An engine that this directory names: a pattern that fits nothing else on the host.
fn engine(directory: &Path, name: &str) -> String {
    let engine = directory.join(name);
    let sleep = Command::new("sh").args(["-c", "command -v sleep"]).output();
    let sleep = String::from_utf8(sleep.expect("a shell").stdout).expect("a path");
    symlink(sleep.trim(), &engine).expect("a link");
    engine.display().to_string()
}

#[test]
fn what_a_dead_server_left_is_cleaned_up_and_what_a_living_one_has_is_not() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let engine_path = engine(sandbox.directory(), "engine");
    let other = engine(sandbox.directory(), "other");
    let options = options(&sandbox, 1, "sleep 1001 & wait");
    // A server, its engine, another process; below the engine one whose creator dies as well. So
    // two orphans fit, of which one belongs to the other's tree.
    let nested = format!("{engine_path} 1005 & sh -c '{engine_path} 1006 & kill -9 \\$\\$'; wait");
    let script = format!("sh -c \"{nested}\" engine & {other} 1007 & wait");
    let mut dead = shell(&sandbox, &script);
    let mut living = shell(&sandbox, &format!("{engine_path} 1008 & wait"));
    let well = wait_for(&sandbox, &format!("{engine_path}\u{0}1008"), 1);
    for seconds in ["1005", "1006"] {
        wait_for(&sandbox, &format!("{engine_path}\u{0}{seconds}"), 1);
    }
    let spared = wait_for(&sandbox, &format!("{other}\u{0}1007"), 1);
    Pidfd::open(dead.id().cast_signed())
        .expect("it lives")
        .kill();
    dead.wait().expect("a zombie");
    run(async {
        let manager = ProcessManager::start(options).await.expect("a manager");
        let patterns = [engine_path.as_str()];
        let own = manager.cleanup_orphans(&patterns, Scope::Own).await;
        assert_eq!(own.expect("no error"), []);
        let cleaned = manager.cleanup_orphans(&patterns, Scope::DeadServers).await;
        let cleaned = cleaned.expect("no error");
        let killed: usize = cleaned.iter().map(|orphan| orphan.killed).sum();
        // The shell between them, and both engines.
        assert_eq!(killed, 3, "{cleaned:?}");
        assert_eq!(manager.shutdown().await.code, 0);
    });
    assert_eq!(with(&sandbox, "1005"), [] as [i32; 0]);
    assert_eq!(with(&sandbox, "1006"), [] as [i32; 0]);
    for pid in [well, spared].concat() {
        assert!(proc::is_running(pid), "{pid} was hit");
    }
    Pidfd::open(living.id().cast_signed())
        .expect("it lives")
        .kill();
    living.wait().expect("a zombie");
}

#[test]
fn without_the_hosts_tracker_nobody_knows_what_other_servers_left() {
    needs!(no_tracker);
    let sandbox = Sandbox::new();
    let options = options(&sandbox, 1, "sleep 1001 & wait");
    run(async {
        let manager = ProcessManager::start(options).await.expect("a manager");
        let pattern = sandbox.directory().display().to_string();
        let cleaned = manager
            .cleanup_orphans(&[pattern], Scope::DeadServers)
            .await;
        let error = cleaned.expect_err("nobody knows").to_string();
        assert!(error.contains("lifemon track on"), "{error}");
        assert_eq!(manager.shutdown().await.code, 0);
    });
    assert_nobody(&sandbox);
}

#[test]
fn a_shutdown_cleans_up_what_a_dead_server_left_where_that_is_wanted() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let engine_path = engine(sandbox.directory(), "engine");
    let mut dead = shell(&sandbox, &format!("{engine_path} 1005 & wait"));
    let left = wait_for(&sandbox, &format!("{engine_path}\u{0}1005"), 1);
    Pidfd::open(dead.id().cast_signed())
        .expect("it lives")
        .kill();
    dead.wait().expect("a zombie");
    let options = options(&sandbox, 1, "sleep 1001 & wait")
        .orphan_scope(Scope::DeadServers)
        .orphan_patterns([engine_path]);
    let finished = run(async {
        let manager = ProcessManager::start(options).await.expect("a manager");
        manager.shutdown().await
    });
    let cleaned = finished.cleaned.iter();
    let cleaned: Vec<_> = cleaned
        .map(|orphan| (orphan.id.pid.cast_signed(), orphan.killed))
        .collect();
    assert_eq!(cleaned, [(left[0], 1)]);
    assert_nobody(&sandbox);
}

#[test]
fn a_worker_that_cannot_be_started_is_dead_for_that_reason() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let missing = sandbox.directory().join("missing");
    let options = options(&sandbox, 1, "sleep 1001 & wait").worker(WorkerCommand::new(missing));
    run(async {
        let manager = ProcessManager::start(options).await.expect("a manager");
        let cause = || {
            let causes = manager.health_status().causes;
            let dead = causes.into_iter().find(|dead| dead.index == 1);
            dead.expect("it is dead").cause
        };
        let before = cause();
        assert!(
            before.starts_with("could not be started: No such file"),
            "{before}"
        );
        assert_eq!(manager.shutdown().await.code, 0);
        assert_eq!(cause(), before);
    });
    assert_nobody(&sandbox);
}

#[test]
fn a_guardian_that_does_not_answer_is_not_left() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let guardian = sandbox.directory().join("guardian");
    let script = format!("#!/bin/sh\n{}exec sleep 1009\n", enter(&sandbox));
    // By a process of its own: who executes a file that is open for writing fails.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"printf %s "$1" >"$0" && chmod 755 "$0""#]);
    let written = shell.arg(&guardian).arg(script).status();
    assert!(written.is_ok_and(|status| status.success()));
    let options = options(&sandbox, 1, "sleep 1001 & wait").guardian(guardian);
    let started = run(ProcessManager::start(options));
    assert!(matches!(started, Err(StartError::NoAnswer)), "{started:?}");
    assert_nobody(&sandbox);
}

#[test]
fn a_server_that_panics_leaves_nothing() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Process::start(&sandbox, "panics");
    server.wait_for("started");
    assert_eq!(server.wait().code(), Some(101));
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
}

#[test]
fn signals_are_served_when_no_worker_is_left_and_no_manager() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Process::start(&sandbox, "outlives its workers");
    server.wait_for("over");
    server.signal(Signal::SIGTERM);
    server.wait_for("asked");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(1));
    assert_nobody(&sandbox);
}

#[test]
fn the_first_signal_in_a_shutdown_does_not_cut_it_short() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Process::start(&sandbox, "ends by itself");
    server.wait_for("begun");
    server.signal(Signal::SIGTERM);
    server.wait_for("ended with 0");
    assert_eq!(server.wait().code(), Some(0));
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
}

#[test]
fn a_server_without_free_descriptors_does_not_lose_its_workers() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Process::start(&sandbox, "has no descriptors");
    server.wait_for("alive");
    assert_eq!(server.wait().code(), Some(0));
    wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
}

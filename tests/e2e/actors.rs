//! The actors and the sandbox against `/proc` and `wait` alone: what every other test builds on
//! is true without lifemon. One test a behaviour.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use lifemon_tests::{Process, Sandbox, actor, proc, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn lives(process: Process) -> bool {
    proc::is_running(process.pid)
        && proc::stat(process.pid).is_some_and(|stat| stat.start_ticks == process.start_ticks)
}

#[test]
fn a_removed_sandbox_leaves_no_process_and_no_directory() {
    let mut sandbox = Sandbox::new();
    _ = sandbox.memory_limited(64 << 20);
    let mut actor = actor!(sandbox, "fork-hold", 20);
    let mut orphan = actor!(sandbox, "double-fork");
    actor.step();
    orphan.step();
    let mut processes = actor.children("worker");
    processes.push(orphan.child("grandchild"));
    assert_eq!(processes.len(), 21);
    let paths = sandbox.paths();
    assert!(paths.iter().all(|path| path.is_dir()));
    assert!(
        processes
            .iter()
            .all(|process| sandbox.pids().contains(&process.pid))
    );

    drop(sandbox);
    assert!(processes.into_iter().all(|process| !lives(process)));
    assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    assert_eq!(actor.wait().signal(), Some(libc::SIGKILL));
}

#[test]
fn the_end_of_stdin_ends_an_actor_quickly() {
    let sandbox = Sandbox::new();
    let mut idle = actor!(sandbox, "fork-hold", 1);
    idle.close();
    assert_eq!(idle.wait().code(), Some(0));
    let mut busy = actor!(sandbox, "pause");
    busy.send("exit 42");
    assert_eq!(busy.wait().code(), Some(42));
}

#[test]
fn a_dropped_actor_is_dead_and_reaped() {
    let sandbox = Sandbox::new();
    let process = actor!(sandbox, "pause").process();
    assert!(!lives(process));
    assert!(sandbox.pids().is_empty());
}

#[test]
fn forked_children_exit_with_their_code() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-wait", 3, 7);
    actor.step();
    let workers = actor.children("worker");
    assert_eq!(workers.len(), 3);
    for worker in workers {
        assert_eq!(actor.reaped(worker.pid)["code"], 7);
        assert!(!lives(worker));
    }
}

#[test]
fn held_children_live_until_killed() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    assert!(workers.iter().all(|worker| lives(*worker)));
    assert!(
        workers
            .iter()
            .all(|worker| proc::ppid(worker.pid) == Some(actor.pid()))
    );
    actor.command(&format!("kill {}", workers[0].pid));
    assert_eq!(actor.reaped(workers[0].pid)["signal"], libc::SIGKILL);
    assert!(!lives(workers[0]) && lives(workers[1]));
}

#[test]
fn a_vforked_child_execs_and_exits() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "vfork-exec");
    actor.step();
    let child = actor.child("vforked");
    assert_eq!(actor.reaped(child.pid)["code"], 0);
}

#[test]
fn with_clone_parent_the_creator_is_not_the_parent() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "clone-parent");
    actor.step();
    let (creator, worker) = (actor.child("creator"), actor.child("worker"));
    assert!(lives(creator) && lives(worker));
    assert_eq!(proc::ppid(worker.pid), Some(actor.pid()));
    actor.command(&format!("kill {}", worker.pid));
    assert_eq!(actor.reaped(worker.pid)["signal"], libc::SIGKILL);
}

#[test]
fn a_double_forks_grandchild_has_another_parent() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));
    assert_eq!(actor.reaped(middle.pid)["code"], 0);
    assert!(lives(grandchild) && !lives(middle));
    let ppid = proc::ppid(grandchild.pid).expect("alive");
    assert!(ppid != middle.pid && ppid != actor.pid());
}

#[test]
fn of_a_chain_only_the_last_lives() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "chain", 50);
    actor.step();
    let (first, last) = (actor.child("first"), actor.child("last"));
    assert!(lives(last) && !lives(first));
    assert_ne!(proc::ppid(last.pid), Some(actor.pid()));
    wait_until("only the actor and the last", SOON, || {
        sandbox.pids().into_iter().collect::<HashSet<_>>() == [actor.pid(), last.pid].into()
    });
}

#[test]
fn an_exec_by_a_thread_keeps_the_pid() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exec-from-thread");
    let before = actor.process();
    actor.step();
    assert!(lives(before));
    assert_eq!(proc::stat(before.pid).expect("alive").threads, 1);
    let readies = actor.seen().iter().filter(|line| line["ready"] == true);
    assert_eq!(
        readies
            .map(|line| &line["pid"])
            .collect::<HashSet<_>>()
            .len(),
        1
    );
    actor.send("exit 5");
    assert_eq!(actor.wait().code(), Some(5));
}

#[test]
fn a_process_outlives_its_leader_thread() {
    // Where the last thread exits alone, the status is its own since Linux 5.17, where the kernel
    // makes that a group exit (`synchronize_group_exit`), and the leader's 77 before.
    for (how, codes) in [("group", [6, 6]), ("thread", [6, 77])] {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "leader-exits-first", 6, how);
        actor.step();
        let line = actor.wait_for("leader exited", |line| line["leader_exited"] == true);
        assert_eq!(proc::stat(actor.pid()).expect("alive").state, 'Z');
        let thread = format!("/proc/{}/task/{}", actor.pid(), line["thread"]);
        assert!(std::path::Path::new(&thread).exists(), "{thread}");
        actor.send("go");
        let code = actor.wait().code().expect("exited");
        assert!(codes.contains(&code), "{how}: {code}");
    }
}

#[test]
fn threads_come_and_go() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "threads");
    actor.step();
    assert_eq!(
        actor.wait_for("threads", |line| line["threads"].is_u64())["threads"],
        200
    );
    wait_until("one thread", SOON, || {
        proc::stat(actor.pid()).expect("alive").threads == 1
    });
}

#[test]
fn a_thread_ends_the_whole_process() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exit-group-from-thread", 8);
    actor.send("go");
    assert_eq!(actor.wait().code(), Some(8));
}

#[test]
fn an_abort_dumps_core() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "core-dump", sandbox.directory().display());
    actor.step();
    let worker = actor.child("worker");
    let reaped = actor.reaped(worker.pid);
    assert_eq!(reaped["signal"], libc::SIGABRT);
    assert_eq!(reaped["core_dumped"], true);
}

#[test]
fn a_ring_with_a_kernel_thread_exits_with_its_own_code() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "sqpoll");
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let worker = actor.child("worker");
    assert_eq!(proc::stat(worker.pid).expect("alive").threads, 2);
    actor.step();
    assert_eq!(actor.reaped(worker.pid)["code"], 9);
}

#[test]
fn a_pid_namespace_hides_the_pids_of_the_host() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pid-namespace");
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let unsharer = actor.child("unsharer");
    let (init, worker) = (actor.child("ns-init"), actor.child("ns-worker"));
    assert_eq!(proc::ppid(init.pid), Some(unsharer.pid));
    assert_eq!(proc::ppid(worker.pid), Some(init.pid));
    for (process, inside) in [(init, 1), (worker, 2)] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
        let ns_pids = status
            .lines()
            .find(|line| line.starts_with("NSpid:"))
            .expect("NSpid");
        assert!(
            ns_pids.ends_with(&format!("\t{}\t{inside}", process.pid)),
            "{ns_pids}"
        );
    }
}

#[test]
fn memory_beyond_the_limit_is_an_oom_kill() {
    let mut sandbox = Sandbox::new();
    let Some(group) = sandbox.memory_limited(32 << 20) else {
        return println!("skipped: no memory controller");
    };
    let mut actor = actor!(sandbox, "oom", group.display());
    actor.step();
    let worker = actor.child("worker");
    assert_eq!(actor.reaped(worker.pid)["signal"], libc::SIGKILL);
    actor.command("again");
    let next = actor.children("worker")[1];
    assert_eq!(actor.reaped(next.pid)["signal"], libc::SIGKILL);
}

#[test]
fn a_fault_and_a_signal_to_oneself_end_a_worker() {
    let sandbox = Sandbox::new();
    for (mut actor, signal) in [
        (actor!(sandbox, "fault"), libc::SIGSEGV),
        (
            actor!(sandbox, "signal-itself", libc::SIGTERM),
            libc::SIGTERM,
        ),
    ] {
        actor.step();
        let worker = actor.child("worker");
        let reaped = actor.reaped(worker.pid);
        assert_eq!(
            (&reaped["signal"], &reaped["core_dumped"]),
            (&signal.into(), &false.into())
        );
    }
}

#[test]
fn a_subreaper_becomes_the_parent() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "subreaper");
    actor.step();
    let (middle, worker) = (actor.child("middle"), actor.child("worker"));
    assert_eq!(proc::ppid(worker.pid), Some(middle.pid));
    actor.step();
    assert_eq!(actor.reaped(middle.pid)["signal"], libc::SIGKILL);
    assert_eq!(proc::ppid(worker.pid), Some(actor.pid()));
}

#[test]
fn three_children_lose_their_parent() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "three-children", 4);
    actor.step();
    let (middle, workers) = (actor.child("middle"), actor.children("worker"));
    assert!(
        workers
            .iter()
            .all(|worker| proc::ppid(worker.pid) == Some(middle.pid))
    );
    actor.step();
    assert_eq!(actor.reaped(middle.pid)["code"], 4);
    assert_eq!(workers.len(), 3);
    assert!(workers.iter().all(|worker| lives(*worker)));
}

#[test]
fn each_nested_generation_forks_on_request() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let (mid, leaf) = (actor.child("mid"), actor.child("leaf"));
    assert_eq!(proc::ppid(mid.pid), Some(actor.pid()));
    assert_eq!(proc::ppid(leaf.pid), Some(mid.pid));
    for role in ["mid-child", "leaf-child", "leaf-child"] {
        actor.command(&format!("spawn-{}", role.trim_end_matches("-child")));
        let child = *actor.children(role).last().expect("reported");
        assert_eq!(actor.reaped(child.pid)["code"], 0);
    }
    assert_eq!(actor.children("leaf-child").len(), 2);
}

#[test]
fn a_worker_has_its_memory() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "worker-memory", 64);
    actor.step();
    let worker = actor.child("worker");
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", worker.pid)).expect("alive");
    let resident_pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    assert!(
        resident_pages.is_some_and(|pages: u64| pages * 4096 >= 64 << 20),
        "{statm}"
    );
}

#[test]
fn a_burst_is_counted_by_exit_code() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "burst", 700);
    actor.step();
    let line = actor.wait_for("created", |line| line["created"].is_u64());
    assert_eq!(line["created"], 700);
    assert_eq!(
        line["codes"],
        serde_json::json!([100, 100, 100, 100, 100, 100, 100])
    );
}

#[test]
fn everything_forked_for_a_while_is_in_the_log() {
    let sandbox = Sandbox::new();
    let log = sandbox.directory().join("log");
    let mut timed = actor!(sandbox, "forever-forking", 200, log.display(), 5000);
    timed.step();
    let mut stopped = actor!(sandbox, "forever-forking", 60_000, log.display());
    stopped.send("go");
    wait_until("a second run in the log", SOON, || {
        let lines = std::fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .count() as u64;
        lines > created(&mut timed) + 100
    });
    stopped.command("stop");

    let text = std::fs::read_to_string(&log).expect("log");
    let entries: HashSet<_> = text.lines().collect();
    assert_eq!(entries.len(), text.lines().count(), "one entry a process");
    assert!(entries.iter().all(|entry| !entry.contains(" 0 ")));
    assert_eq!(
        entries.len() as u64,
        created(&mut timed) + created(&mut stopped)
    );
    assert!(created(&mut timed) > lifemon_tests::scaled(50));
}

fn created(actor: &mut lifemon_tests::Actor) -> u64 {
    let line = actor.wait_for("created", |line| line["created"].is_u64());
    line["created"].as_u64().expect("a number")
}

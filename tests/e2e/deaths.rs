//! Deaths that somebody or something caused, against the real kernel: which signal, who sent it,
//! out of memory or not, and how long before the process is gone.

use std::thread;
use std::time::Instant;

use lifemon_tests::story::is_about;
use lifemon_tests::{DEADLINE, Pidfd, Process, Sandbox, Watching, actor, proc};
use serde_json::{Value, json};

/// Where an event says that this process sent the signal, by this name.
#[track_caller]
fn assert_sent_by(sender: &Value, process: Process, name: &str) {
    assert!(is_about(sender, process), "{sender} is not {process:?}");
    assert_eq!(sender["name"], name, "{sender}");
    assert!(sender.get("kernel").is_none(), "{sender}");
}

/// The test as a sender of signals: its process, whatever thread it sends from.
fn this_process() -> (Process, String) {
    let pid = std::process::id().cast_signed();
    let start_ticks = proc::stat(pid).expect("this process").start_ticks;
    let name = std::fs::read_to_string("/proc/self/comm").expect("its name");
    (Process { pid, start_ticks }, name.trim_end().to_owned())
}

#[test]
fn an_abort_is_a_signal_to_oneself_with_a_core_dump() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "core-dump", sandbox.directory().display());
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let worker = actor.child("worker");
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
    let exit = &story.the("exit", worker)["exit"];
    assert_eq!(
        (&exit["code"], &exit["signal"]),
        (&json!(null), &json!(libc::SIGABRT))
    );
    assert_eq!(exit["signal_name"], "SIGABRT");
    assert_eq!(exit["core_dumped"], true);
    assert_eq!(exit["cause"], "signal");
    assert_sent_by(&exit["sender"], worker, "actor");
}

#[test]
fn who_sends_sigkill_is_told_before_and_with_the_death() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let workers = actor.children("worker");
    let (by_actor, by_test) = (workers[0], workers[1]);
    actor.command(&format!("kill {}", by_actor.pid));
    Pidfd::of(by_test).kill();
    watching.wait_for("exit", by_test);
    let story = watching.end_of(actor);

    story.assert_exactly(&[
        (root, "exit gone"),
        (by_actor, "fork signal exit gone"),
        (by_test, "fork signal exit gone"),
    ]);
    let (this, name) = this_process();
    for (victim, sender, name) in [(by_actor, root, "actor"), (by_test, this, &name)] {
        for (event, field) in [("signal", "signal"), ("exit", "exit")] {
            let told = &story.the(event, victim)[field];
            assert_eq!(told["signal"], libc::SIGKILL, "{told}");
            assert_eq!(told["signal_name"], "SIGKILL", "{told}");
            assert_sent_by(&told["sender"], sender, name);
        }
        let exit = &story.the("exit", victim)["exit"];
        assert_eq!(exit["cause"], "signal");
        assert_eq!(exit["code"], json!(null));
        assert_eq!(exit["core_dumped"], false);
    }
    assert_eq!(story.summary()["exits"], json!({"exited": 1, "signal": 2}));
}

#[test]
fn a_process_in_a_pid_namespace_is_told_with_both_pids() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pid-namespace");
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let unsharer = actor.child("unsharer");
    let (init, worker) = (actor.child("ns-init"), actor.child("ns-worker"));
    // The kernel kills what is inside when the init dies, and the init waits for that.
    Pidfd::of(init).kill();
    watching.wait_for("gone", init);
    actor.command(&format!("kill {}", unsharer.pid));
    let story = watching.end_of(actor);

    story.assert_exactly(&[
        (root, "exit gone"),
        (unsharer, "fork signal exit gone"),
        (init, "fork signal exit gone"),
        (worker, "fork signal exit gone"),
    ]);
    for (process, creator, ns_pid) in [
        (unsharer, root, unsharer.pid),
        (init, unsharer, 1),
        (worker, init, 2),
    ] {
        for event in ["fork", "exit"] {
            let event = story.the(event, process);
            assert_eq!(event["process"]["ns_pid"], ns_pid, "{event}");
            assert!(is_about(&event["creator"], creator), "{event}");
        }
    }
    let (this, name) = this_process();
    assert_sent_by(&story.the("exit", init)["exit"]["sender"], this, &name);
    assert_eq!(
        story.the("exit", worker)["exit"]["sender"],
        json!({"kernel": true})
    );
}

#[test]
fn a_fault_is_the_kernels_signal() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fault");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let worker = actor.child("worker");
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
    let by_kernel = json!({"kernel": true});
    assert_eq!(story.the("signal", worker)["signal"]["sender"], by_kernel);
    let exit = &story.the("exit", worker)["exit"];
    assert_eq!(exit["signal_name"], "SIGSEGV");
    assert_eq!(exit["cause"], "signal");
    assert_eq!(exit["core_dumped"], false);
    assert_eq!(exit["sender"], by_kernel);
}

#[test]
fn a_signal_to_oneself_has_oneself_as_its_sender() {
    // Also the one that is the kernel's in the test above.
    for signal in [libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM] {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "signal-itself", signal);
        let root = actor.process();
        let watching = Watching::of(&actor);
        actor.step();
        let worker = actor.child("worker");
        let story = watching.end_of(actor);
        story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
        let told = &story.the("signal", worker)["signal"];
        assert_eq!(told["signal"], signal);
        assert_sent_by(&told["sender"], worker, "actor");
        let exit = &story.the("exit", worker)["exit"];
        assert_eq!(
            (&exit["signal"], &exit["cause"]),
            (&json!(signal), &json!("signal"))
        );
        assert_sent_by(&exit["sender"], worker, "actor");
    }
}

#[test]
fn memory_beyond_the_limit_is_never_a_mere_signal() {
    const TIMES: usize = 20;
    let mut sandbox = Sandbox::new();
    let Some(group) = sandbox.memory_limited(32 << 20) else {
        return println!("skipped: no memory controller");
    };
    let mut actor = actor!(sandbox, "oom", group.display());
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    (1..TIMES).for_each(|_| actor.command("again"));
    let workers = actor.children("worker");
    assert_eq!(workers.len(), TIMES);
    let story = watching.end_of(actor);
    let mut expected = vec![(root, "exit gone")];
    expected.extend(
        workers
            .iter()
            .map(|worker| (*worker, "fork signal exit gone")),
    );
    story.assert_exactly(&expected);
    for worker in workers {
        let exit = &story.the("exit", worker)["exit"];
        assert_eq!(exit["cause"], "oom", "{exit}");
        assert_eq!(exit["signal"], libc::SIGKILL, "{exit}");
        assert_eq!(exit["sender"], json!({"kernel": true}), "{exit}");
    }
    assert_eq!(story.summary()["exits"], json!({"exited": 1, "oom": TIMES}));
}

#[test]
fn the_death_of_a_large_process_is_told_before_it_is_gone() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "worker-memory", 512);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let worker = actor.child("worker");
    let pidfd = Pidfd::of(worker);
    let killed = Instant::now();
    let gone_after = thread::scope(|scope| {
        let gone = scope.spawn(|| {
            pidfd.wait_gone(DEADLINE);
            killed.elapsed()
        });
        pidfd.kill();
        watching.wait_for("exit", worker);
        println!("exit after {:?}", killed.elapsed());
        gone.join().expect("it is gone")
    });
    println!("pidfd readable after {gone_after:?}");
    actor.command(&format!("reap {}", worker.pid));
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
    let after_us = story.the("gone", worker)["after_us"]
        .as_u64()
        .expect("checked");
    println!("gone {after_us} us after exit, as lifemon says");
    assert!(u128::from(after_us) < gone_after.as_micros() + 1_000_000);
}

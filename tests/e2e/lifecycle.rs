//! One process at a time against the real kernel: how its birth, its programs, its signals and its
//! one death are told. Who belongs to whom is in `lineage.rs`.

use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::story::{self, is_about, time};
use lifemon_tests::{
    Actor, DEADLINE, Lifemon, Pidfd, Process, Sandbox, Story, Watching, actor, on_both_paths,
    private_lock, proc,
};
use serde_json::{Value, json};

/// Ends the actor with 0 and lets lifemon come to its own end.
#[track_caller]
fn end(mut actor: Actor, watching: Watching) -> Story {
    actor.close();
    assert_eq!(actor.wait().code(), Some(0));
    watching.until_extinct()
}

fn exited(code: i32) -> Value {
    json!({"code": code, "signal": null, "core_dumped": false, "cause": "exited"})
}

/// Where an event says that this process, an actor, sent the signal.
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

on_both_paths!(
    forked_children_are_told_with_their_creator_and_their_code,
    an_exec_by_a_thread_is_one_exec_and_no_death,
    a_process_whose_leader_exits_first_dies_once_and_at_its_true_end,
    an_exit_by_a_thread_is_the_death_of_the_process,
);

fn forked_children_are_told_with_their_creator_and_their_code(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-wait", 3, 7);
    let root = actor.process();
    let watching = Watching::with(&actor, options);
    actor.step();
    let workers = actor.children("worker");
    let story = end(actor, watching);

    let [first, second, third] = workers[..] else {
        panic!("three workers: {workers:?}")
    };
    story.assert_exactly(&[
        (root, "exit gone"),
        (first, "fork exit gone"),
        (second, "fork exit gone"),
        (third, "fork exit gone"),
    ]);
    for worker in workers {
        for event in ["fork", "exit", "gone"] {
            let event = story.the(event, worker);
            assert!(is_about(&event["creator"], root), "{event}");
            assert_eq!(event["creator"]["name"], "actor", "{event}");
            assert_eq!(event["process"]["name"], "actor", "{event}");
            assert_eq!(event["process"]["uid"], 0, "{event}");
        }
        let exit = story.the("exit", worker);
        assert_eq!(exit["exit"], exited(7));
        assert_eq!(exit["orphans"], json!([]));
        assert!(exit["age_ms"].as_u64() < Some(10_000), "{exit}");
    }
    assert_eq!(story.the("exit", root)["exit"], exited(0));
    assert_eq!(story.summary()["exits"], json!({"exited": 4}));
}

#[test]
fn deaths_are_told_in_the_order_of_their_times() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    let mut watching = Watching::of(&actor);
    actor.step();
    // Each is reaped before the next is made, so there is one true order.
    for _ in 0..20 {
        actor.command("spawn-mid");
        actor.command("spawn-leaf");
    }
    let last = *actor.children("leaf-child").last().expect("reported");
    watching.wait_for("gone", last);
    let story = watching.interrupt();
    let is_child = |line: &&Value| line["role"].as_str().is_some_and(|r| r.ends_with("-child"));
    let told: Vec<_> = story.all("exit").collect();
    let made: Vec<_> = actor.seen().iter().filter(is_child).collect();
    assert_eq!(told.len(), 40);
    for (told, made) in told.iter().zip(made) {
        assert_eq!(told["process"]["pid"], made["child"], "{told} {made}");
    }
    assert!(told.is_sorted_by_key(|exit| time(exit)));
}

#[test]
fn a_vforked_child_has_another_name_after_its_exec() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "vfork-exec");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let child = actor.child("vforked");
    let story = end(actor, watching);
    story.assert_exactly(&[(root, "exit gone"), (child, "fork exec exit gone")]);
    let name = |event| &story.the(event, child)["process"]["name"];
    assert_eq!(
        ["fork", "exec", "exit", "gone"].map(name),
        ["actor", "true", "true", "true"]
    );
    assert!(is_about(&story.the("exec", child)["creator"], root));
    assert_eq!(story.the("exit", child)["exit"], exited(0));
}

fn an_exec_by_a_thread_is_one_exec_and_no_death(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exec-from-thread");
    let root = actor.process();
    let mut watching = Watching::with(&actor, options);
    actor.step();
    watching.wait_for("exec", root);
    watching.expect_silence();
    actor.send("exit 5");
    assert_eq!(actor.wait().code(), Some(5));
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exec exit gone")]);
    // The same to the nanosecond, before and after.
    for event in ["exec", "exit"] {
        assert_eq!(
            story::key(&story.the(event, root)["process"]),
            story::key(&story.attached()["tree"])
        );
    }
    assert_eq!(story.the("exit", root)["exit"], exited(5));
}

fn a_process_whose_leader_exits_first_dies_once_and_at_its_true_end(options: &[&str]) {
    for how in ["group", "thread"] {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "leader-exits-first", 6, how);
        let root = actor.process();
        let mut watching = Watching::with(&actor, options);
        actor.step();
        actor.wait_for("leader exited", |line| line["leader_exited"] == true);
        watching.expect_silence();
        actor.send("go");
        // 6, or 77 before Linux 5.17 where the last thread exits alone: `actors.rs` knows.
        let code = actor.wait().code().expect("exited");
        let story = watching.until_extinct();
        story.assert_exactly(&[(root, "exit gone")]);
        assert_eq!(story.the("exit", root)["exit"], exited(code), "{how}");
    }
}

fn an_exit_by_a_thread_is_the_death_of_the_process(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exit-group-from-thread", 8);
    let root = actor.process();
    let watching = Watching::with(&actor, options);
    actor.send("go");
    assert_eq!(actor.wait().code(), Some(8));
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exit gone")]);
    assert_eq!(story.the("exit", root)["exit"], exited(8));
}

#[test]
fn threads_that_come_and_go_are_no_events() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "threads", 200);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    watching.expect_silence();
    end(actor, watching).assert_exactly(&[(root, "exit gone")]);
}

#[test]
fn an_abort_is_a_signal_to_oneself_with_a_core_dump() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "core-dump", sandbox.directory().display());
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let worker = actor.child("worker");
    let story = end(actor, watching);
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
fn a_ring_thread_that_exits_last_does_not_change_the_code() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "sqpoll");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let worker = actor.child("worker");
    actor.step();
    let story = end(actor, watching);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork exit gone")]);
    assert_eq!(story.the("exit", worker)["exit"], exited(9));
    assert_eq!(story.the("exit", worker)["process"]["name"], "actor");
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
    let story = end(actor, watching);

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
    let story = end(actor, watching);

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
fn a_fault_is_the_kernels_signal() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fault");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let worker = actor.child("worker");
    let story = end(actor, watching);
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
        let story = end(actor, watching);
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
    let story = end(actor, watching);
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
    let story = end(actor, watching);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
    let after_us = story.the("gone", worker)["after_us"]
        .as_u64()
        .expect("checked");
    println!("gone {after_us} us after exit, as lifemon says");
    assert!(u128::from(after_us) < gone_after.as_micros() + 1_000_000);
}

#[test]
fn text_is_for_people_and_plain_where_there_is_no_terminal() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let (mid, leaf) = (actor.child("mid"), actor.child("leaf"));
    let _lock = private_lock();
    let output = thread::scope(|scope| {
        let words = ["attach", &actor.pid().to_string(), "--for", "1s"].map(str::to_owned);
        let lifemon = scope.spawn(|| Lifemon::find().run(words));
        while !lifemon.is_finished() {
            actor.command("spawn-leaf");
            thread::sleep(Duration::from_millis(10));
        }
        lifemon.join().expect("it ran")
    });

    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let text = output.stdout;
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    let root = actor.pid();
    assert!(
        text.starts_with(&format!("watching the tree of {root} actor: ")),
        "{text}"
    );
    for line in [
        format!("\n~ {root} actor\n"),
        format!("\n  ~ {} actor\n", mid.pid),
        format!("\n    ~ {} actor\n", leaf.pid),
    ] {
        assert!(text.contains(&line), "no line {line:?} in {text}");
    }
    let children = actor.children("leaf-child");
    let whole = children.iter().find(|child| {
        let of = |kind, rest: String| {
            let said = format!(" {kind:<8} {} actor{rest}", child.pid);
            text.lines().any(|line| line.contains(&said))
        };
        of("fork", format!("  by {} actor", leaf.pid))
            && of("exit", "  code 0, aged ".into())
            && of("gone", "  ".into())
    });
    assert!(
        whole.is_some(),
        "no child of the leaf with its whole life in {text}"
    );
    let last = text.lines().last().expect("a summary");
    assert!(last.contains(" alive; exits: "), "{last}");
}

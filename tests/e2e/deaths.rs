//! Deaths that somebody or something caused, against the real kernel: which signal, who sent it,
//! out of memory or not, and how long before the process is gone.

use std::thread;
use std::time::Instant;

use lifemon_tests::reports::{Exit, Exited, Gone, Sender, Signalled};
use lifemon_tests::{DEADLINE, Pidfd, Process, Sandbox, Watching, actor, proc};

/// Claims that this signal has ended a process, which left a core dump or did not.
#[track_caller]
fn assert_ended_by(exit: &Exit, signal: i32, core_dumped: bool) {
    assert_eq!((exit.code, exit.signal), (None, Some(signal)), "{exit:?}");
    assert_eq!(exit.core_dumped, core_dumped, "{exit:?}");
    assert_eq!(exit.cause, "signal", "{exit:?}");
}

/// Claims that this process sent the signal, and is called so.
#[track_caller]
fn assert_sent_by(sender: Option<&Sender>, process: Process, name: &str) {
    let sender = sender.expect("a sender");
    assert_eq!(sender.process(), Some(process), "{sender:?}");
    assert_eq!(sender.name.as_deref(), Some(name), "{sender:?}");
    assert!(!sender.kernel, "{sender:?}");
}

/// Claims that the kernel itself sent the signal.
#[track_caller]
fn assert_sent_by_the_kernel(sender: Option<&Sender>) {
    assert_eq!(sender, Some(&Sender::KERNEL));
}

/// Returns the test as a sender of signals: its process, whatever thread it sends from.
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
    let exit = story.death(worker);
    assert_ended_by(exit, libc::SIGABRT, true);
    assert_eq!(exit.signal_name.as_deref(), Some("SIGABRT"));
    assert_sent_by(exit.sender.as_ref(), worker, "actor");
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
    watching.wait_for::<Exited>(by_test);
    let story = watching.end_of(actor);

    story.assert_exactly(&[
        (root, "exit gone"),
        (by_actor, "fork signal exit gone"),
        (by_test, "fork signal exit gone"),
    ]);
    let (this, name) = this_process();
    for (victim, sender, name) in [(by_actor, root, "actor"), (by_test, this, &name)] {
        let told = &story.the::<Signalled>(victim).signal;
        let number_and_name = (told.signal, told.signal_name.as_str());
        assert_eq!(number_and_name, (libc::SIGKILL, "SIGKILL"));
        assert_sent_by(told.sender.as_ref(), sender, name);
        let exit = story.death(victim);
        assert_ended_by(exit, libc::SIGKILL, false);
        assert_eq!(exit.signal_name.as_deref(), Some("SIGKILL"));
        assert_sent_by(exit.sender.as_ref(), sender, name);
    }
    assert_eq!(story.summary().exits(), [("exited", 1), ("signal", 2)]);
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
    watching.wait_for::<Gone>(init);
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
        for event in story.about(process) {
            let subject = event.subject().expect("it is about the process");
            assert_eq!(subject.ns_pid, Some(ns_pid), "{event:?}");
            assert!(event.is_by(creator), "{event:?}");
        }
    }
    let (this, name) = this_process();
    assert_sent_by(story.death(init).sender.as_ref(), this, &name);
    assert_sent_by_the_kernel(story.death(worker).sender.as_ref());
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
    assert_sent_by_the_kernel(story.the::<Signalled>(worker).signal.sender.as_ref());
    let exit = story.death(worker);
    assert_ended_by(exit, libc::SIGSEGV, false);
    assert_eq!(exit.signal_name.as_deref(), Some("SIGSEGV"));
    assert_sent_by_the_kernel(exit.sender.as_ref());
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
        let told = &story.the::<Signalled>(worker).signal;
        assert_eq!(told.signal, signal);
        assert_sent_by(told.sender.as_ref(), worker, "actor");
        let exit = story.death(worker);
        assert_ended_by(exit, signal, false);
        assert_sent_by(exit.sender.as_ref(), worker, "actor");
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
        let exit = story.death(worker);
        let how = (exit.cause.as_str(), exit.signal);
        assert_eq!(how, ("oom", Some(libc::SIGKILL)), "{exit:?}");
        assert_sent_by_the_kernel(exit.sender.as_ref());
    }
    assert_eq!(
        story.summary().exits(),
        [("exited", 1), ("oom", TIMES as u64)]
    );
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
        watching.wait_for::<Exited>(worker);
        println!("exit after {:?}", killed.elapsed());
        gone.join().expect("it is gone")
    });
    println!("pidfd readable after {gone_after:?}");
    actor.command(&format!("reap {}", worker.pid));
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
    let after_us = story.the::<Gone>(worker).after_us.expect("checked");
    println!("gone {after_us} us after exit, as lifemon says");
    assert!(u128::from(after_us) < gone_after.as_micros() + 1_000_000);
}

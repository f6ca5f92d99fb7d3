//! The lock of the tracker: users cannot take it, other network namespaces share it, and whoever
//! waits for it says for whom and hears Ctrl-C.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::bpf::BPF_FS;
use lifemon_tests::killing::assert_killed;
use lifemon_tests::reports::{Attached, Event};
use lifemon_tests::{
    DEADLINE, Lifemon, Output, Running, Sandbox, actor, poll, proc, scaled, stretched, wait_until,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use super::host::{HOME, Host, OPEN_TO_ALL};

#[test]
fn no_lock_that_users_can_take_is_waited_for() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let lock = |path: &str| {
        let directory = File::open(host.mounts.path(path)).expect("a directory for all");
        Flock::lock(directory, FlockArg::LockExclusive).expect("a lock for all")
    };
    // All that a user can open of the way to the pins.
    let locks = ["/sys/fs", BPF_FS, "/sys", "/", "/run"].map(lock);
    host.track("on");
    assert!(!host.mounts.try_as_nobody(&["ls", HOME]));
    let begun = Instant::now();
    host.assert_used();
    host.assert_switched_off();
    assert!(begun.elapsed() < stretched(Duration::from_secs(20)));
    drop(locks);
}

/// Runs a command against the lock that this process holds, as far as its message; then `end`s it.
#[track_caller]
fn assert_says_who_holds_it(host: &Host, words: &[&str], end: impl Fn(&mut Running)) -> Output {
    let home = File::open(host.mounts.path(HOME)).expect("a home");
    let lock = Flock::lock(home, FlockArg::LockExclusive).expect("a lock");
    let mut running = host.start(words);
    let holder = format!("(pid {})", std::process::id());
    wait_until("a message that names the holder", DEADLINE, || {
        running.stderr_so_far().contains(&holder)
    });
    end(&mut running);
    let begun = Instant::now();
    let output = running.finish(DEADLINE);
    assert!(
        begun.elapsed() < stretched(Duration::from_secs(2)),
        "{output:?}"
    );
    drop(lock);
    output
}

#[test]
fn who_waits_for_the_lock_says_for_whom_and_hears_ctrl_c() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    for words in [&["attach", &pid][..], &["kill", &pid]] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let output = assert_says_who_holds_it(&host, words, |running| running.signal(signal));
            assert_eq!(output.code, Some(1), "{output:?}");
            assert!(output.stderr.contains("interrupted"), "{output:?}");
        }
    }
    // These have nothing to give back: they end as programs do.
    for words in [["track", "on"], ["track", "off"]] {
        let output =
            assert_says_who_holds_it(&host, &words, |running| running.signal(Signal::SIGINT));
        assert_eq!(output.code, None, "{output:?}");
    }
    assert!(proc::is_running(actor.pid()));
    // Once it is free, those who wait go on.
    let home = File::open(host.mounts.path(HOME)).expect("a home");
    let lock = Flock::lock(home, FlockArg::LockExclusive).expect("a lock");
    let running = host.start(&["attach", &pid, "--for", "1ms", "-o", "json"]);
    thread::sleep(Duration::from_millis(100));
    drop(lock);
    let output = running.finish(DEADLINE);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    host.assert_switched_off();
}

#[test]
fn two_network_namespaces_share_one_lock() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let other = host.mounts.in_another_network();
    host.track("on");
    let until = Instant::now() + Duration::from_secs(scaled(10).max(5));
    let killing = || {
        let mut kills = 0;
        while Instant::now() < until {
            let sandbox = Sandbox::new();
            let mut doomed = actor!(sandbox, "fork-hold", 4);
            doomed.step();
            let pid = doomed.pid().to_string();
            let report = assert_killed(&host.run(&["kill", &pid, "-o", "json"]));
            assert_eq!(report.killed.len(), 5, "{report:?}");
            let alive = poll(DEADLINE, || sandbox.pids().is_empty().then_some(()));
            assert!(alive.is_some(), "{:?} live: {report:?}", sandbox.pids());
            kills += 1;
        }
        kills
    };
    let attaching = || {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "fork-hold", 4);
        actor.step();
        let pid = actor.pid().to_string();
        let mut attaches = 0;
        while Instant::now() < until {
            let words = ["attach", &pid, "--for", "1ms", "-o", "json"];
            let mut command = Lifemon::find().command(words);
            other.enter(&mut command);
            let output = Lifemon::find().start(command).finish(DEADLINE);
            assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
            let first: Event = output.first();
            let first = first.as_kind::<Attached>().expect("the first line");
            assert_eq!(first.tracker, "host", "{first:?}");
            assert!(first.complete, "{first:?}");
            assert_eq!(first.members.len(), 5, "{first:?}");
            attaches += 1;
        }
        attaches
    };
    let (kills, attaches) = thread::scope(|scope| {
        let attaching = scope.spawn(attaching);
        (killing(), attaching.join().expect("no false report"))
    });
    eprintln!("{kills} kills against {attaches} attaches");
    assert!(kills > 1 && attaches > 1, "{kills} {attaches}");
    assert_eq!(host.status().on().watched_trees, 0);
    host.assert_switched_off();
}

//! The example server and its workers, over HTTP: deaths are known at once, and nothing is left of
//! the workers however the server ends.

pub(crate) mod server;

use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::killing::alive;
use lifemon_tests::story::is_time;
use lifemon_tests::{DEADLINE, Pidfd, Sandbox, needs, proc, scaled, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use server::{Server, get};

/// How fast a death must be known, over HTTP.
const KNOWN: Duration = Duration::from_millis(50);

/// How fast everything must be gone after the server was killed.
const GONE: Duration = Duration::from_secs(1);

/// An emulated machine is slow in everything.
fn patient(limit: Duration) -> Duration {
    if scaled(100) < 100 { limit * 30 } else { limit }
}

/// Both ways to watch the workers, by the names that the server has for them, and the options for
/// them.
const BOTH_WAYS: [(&str, &[&str]); 2] = [("ebpf", &[]), ("subreaper", &["--no-ebpf"])];

#[test]
fn a_dead_worker_is_unhealthy_at_once_with_its_cause() {
    needs!(python, private_tracker);
    for (way, options) in BOTH_WAYS {
        let sandbox = Sandbox::new();
        let words = [options, &["--workers", "5"]].concat();
        let server = Server::start(&sandbox, &words, &[]);
        server.wait_for_way(way);
        assert_eq!(server.health().1.status, "ok");
        let mut took = Vec::new();
        for (index, worker) in server.workers().into_iter().enumerate() {
            let begun = Instant::now();
            Pidfd::open(worker).expect("it lives").kill();
            let health = loop {
                let (code, health) = server.health();
                if health.dead_workers.contains(&index) {
                    assert_eq!((code, health.status.as_str()), (503, "unhealthy"));
                    break health;
                }
                assert!(begun.elapsed() < DEADLINE, "{health:?}");
            };
            took.push(begun.elapsed());
            let cause = &health.causes[index];
            let exit = cause.exit.as_ref().expect("how it died");
            assert_eq!(exit.signal, Some(9), "{health:?}");
            assert_eq!(cause.pid, Some(worker), "{health:?}");
            assert!(is_time(&cause.since), "{health:?}");
            if way == "ebpf" {
                // Who did it: this test.
                let sender = exit.sender.as_ref().and_then(|sender| sender.pid);
                let own = std::process::id().cast_signed();
                assert_eq!(sender, Some(own), "{health:?}");
            }
            if index + 1 == 4 {
                break;
            }
        }
        // The fastest: a busy machine delays the others, and a poll would delay them all.
        let fastest = took.iter().min().expect("four");
        assert!(*fastest < patient(KNOWN), "{way}: {took:?}");
        let message = server.health().1.message;
        let expected = "vLLM worker(s) [0, 1, 2, 3] died. Restart the server to recover.";
        assert_eq!(message.as_deref(), Some(expected));
        // What the dead have left: their engines.
        server.wait_for_orphans(4);
        assert_eq!(server.get("/generate?prompt=x").0, 503);
        server.stops(&sandbox);
    }
}

#[test]
fn the_workers_answer() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    for round in 0..10 {
        let answer = server.generate(&format!("prompt=abc{round}"));
        assert_eq!(answer, format!("{round}cba"));
    }
}

#[test]
fn when_all_workers_are_dead_the_server_ends_with_1() {
    needs!(python, private_tracker);
    for (_, options) in BOTH_WAYS {
        let sandbox = Sandbox::new();
        let server = Server::start(&sandbox, options, &[]);
        for worker in server.workers() {
            Pidfd::open(worker).expect("it lives").kill();
        }
        server.ends_with(1, &sandbox);
    }
}

#[test]
fn one_dead_worker_is_enough_where_the_policy_says_so() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &["--any", "--workers", "3"], &[]);
    server.kill_worker(1);
    server.ends_with(1, &sandbox);
}

#[test]
fn sigterm_is_graceful_and_every_worker_gets_the_message() {
    needs!(python, private_tracker);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sandbox = Sandbox::new();
        let server = Server::start(&sandbox, &["--workers", "3"], &[]);
        let workers = server.workers();
        server.signal(signal);
        let finished = server.ends_with(0, &sandbox);
        for worker in workers {
            let said = json!({"worker": worker, "shutdown": true});
            assert!(finished.events.contains(&said), "{worker}: {finished:?}");
        }
    }
}

/// As a service manager does it: it asks the server, and all others of its group.
#[test]
fn workers_that_are_asked_together_with_the_server_have_not_failed() {
    needs!(python, private_tracker);
    for (way, options) in BOTH_WAYS {
        let sandbox = Sandbox::new();
        let mut server = Server::start(&sandbox, &[options, &["--any"]].concat(), &[]);
        server.wait_for_way(way);
        // The server waits for its client while the workers die.
        let port = server.port();
        let asking = thread::spawn(move || get(port, "/generate?worker=0&prompt=never"));
        server.wait_for("the request taken", |line| line["taken"] == "never");
        let others = [server.workers(), server.engines()].concat();
        let others = others.into_iter().filter_map(Pidfd::open);
        let others: Vec<_> = others.collect();
        server.signal(Signal::SIGTERM);
        for other in others {
            // It may have ended already.
            let _ = other.signal(Signal::SIGTERM);
        }
        assert_eq!(asking.join().expect("an answer").0, 500);
        server.ends_with(0, &sandbox);
    }
}

#[test]
fn a_server_that_is_killed_or_aborts_leaves_nothing() {
    needs!(python, private_tracker);
    let mut took = Vec::new();
    for (_, options) in BOTH_WAYS {
        for signal in [Signal::SIGKILL, Signal::SIGABRT] {
            let sandbox = Sandbox::new();
            let server = Server::start(&sandbox, options, &[]);
            let begun = Instant::now();
            server.signal(signal);
            wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
            took.push(begun.elapsed());
            assert_eq!(server.finish().code, None);
        }
    }
    let fastest = took.iter().min().expect("four");
    assert!(*fastest < patient(GONE), "{took:?}");
}

#[test]
fn without_any_privilege_nothing_is_left_either() {
    needs!(python, private_tracker);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let sandbox = Sandbox::new();
        let server = Server::start_as_nobody(&sandbox, &[]);
        let health = server.health().1;
        let known = (health.way.as_str(), health.complete);
        assert_eq!(known, ("subreaper", false), "{health:?}");
        // Its engine is an orphan, in a session of its own.
        server.kill_worker(0);
        server.wait_for_orphans(1);
        server.signal(signal);
        wait_until("nobody", DEADLINE, || sandbox.pids().is_empty());
        server.finish();
    }
}

#[test]
fn when_the_guardian_is_killed_the_workers_die_and_the_server_ends() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    server.wait_for_way("ebpf");
    Pidfd::open(server.guardian()).expect("it lives").kill();
    let finished = server.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    // Also the engines, which had become nobody's. None of them can run any more when the server
    // ends; the last of them may still be on its way out.
    wait_until("nobody", Duration::from_secs(1), || {
        alive(&sandbox).is_empty()
    });
}

#[test]
fn who_ignores_the_message_and_sigterm_is_killed_after_the_time_outs() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let times = ["--shutdown-ms", "400", "--kill-ms", "300"];
    let server = Server::start(&sandbox, &times, &["ignore"]);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    server.ends_with(0, &sandbox);
    let took = begun.elapsed();
    let limits = Duration::from_millis(700)..patient(Duration::from_secs(5));
    assert!(limits.contains(&took), "{took:?}");
}

#[test]
fn a_second_signal_does_not_wait() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let times = ["--shutdown-ms", "100000", "--kill-ms", "100000"];
    let mut server = Server::start(&sandbox, &times, &["ignore"]);
    server.signal(Signal::SIGTERM);
    server.wait_for("the message", |event| event["shutdown"] == true);
    server.signal(Signal::SIGTERM);
    server.ends_with(1, &sandbox);
}

#[test]
fn a_cleanup_hits_orphans_that_match_and_nobody_who_is_well() {
    needs!(python, private_tracker);
    for (_, options) in BOTH_WAYS {
        let sandbox = Sandbox::new();
        let server = Server::start(&sandbox, options, &[]);
        let engines = server.engines();
        assert!(server.cleanup().is_empty());
        server.kill_worker(0);
        let health = server.wait_for_orphans(1);
        assert_eq!(health.orphans[0].pid, engines[0], "{health:?}");
        assert_eq!(server.cleanup(), [engines[0]]);
        wait_until("its end", DEADLINE, || !proc::is_running(engines[0]));
        // The engine of the other worker has the same name, and is well.
        assert!(proc::is_running(engines[1]));
        server.stops(&sandbox);
    }
}

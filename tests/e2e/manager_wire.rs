//! Workers that do not speak as they should: every answer of the server comes, with its reason, and
//! nothing that a worker does blocks the manager.

use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::{Sandbox, needs};
use serde_json::json;

use crate::manager::server::{Server, assert_fails, get, post};

/// Claims that the server refuses what its worker says to this prompt, and why.
#[track_caller]
fn assert_refused(prompt: &str, kind: &str) {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    let answer = server.get(&format!("/generate?worker=0&prompt={prompt}"));
    assert_fails(&answer, kind);
    // The other one is as well as before.
    assert_eq!(server.generate("worker=1&prompt=ab"), "ba");
    server.stops(&sandbox);
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    assert_refused("too-large", "too_large");
}

#[test]
fn a_message_that_is_not_json_is_refused() {
    assert_refused("not-json", "not_json");
}

#[test]
fn a_message_that_is_cut_off_is_told_from_an_end() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    assert_fails(
        &server.get("/generate?worker=0&prompt=truncated"),
        "truncated",
    );
}

#[test]
fn a_worker_that_dies_under_a_request_answers_it_with_its_cause() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Server::start(&sandbox, &[], &[]);
    let port = server.port();
    let asking = thread::spawn(move || get(port, "/generate?worker=0&prompt=never"));
    server.wait_for("the request taken", |line| line["taken"] == "never");
    server.kill_worker(0);
    let answer = assert_fails(&asking.join().expect("an answer"), "worker_dead");
    assert_eq!(answer.error, "Worker process died (pipe closed)");
    assert_eq!(answer.worker, Some(0), "{answer:?}");
    let cause = answer.cause.as_deref().expect("a cause");
    assert!(cause.starts_with("SIGKILL"), "{cause}");
}

#[test]
fn a_worker_that_hangs_while_it_receives_blocks_nobody() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let options = [
        "--answer-ms",
        "8000",
        "--shutdown-ms",
        "300",
        "--kill-ms",
        "2000",
    ];
    let mut server = Server::start(&sandbox, &options, &[]);
    let port = server.port();
    assert_eq!(server.get("/generate?worker=0&prompt=hang").0, 200);
    server.wait_for("the request taken", |line| line["taken"] == "hang");
    // More than its socket takes.
    let large = json!({"worker": 0, "prompt": "y".repeat(1_000_000)});
    let asking = thread::spawn(move || post(port, &large));
    let begun = Instant::now();
    assert_eq!(server.health().1.status, "ok");
    assert_eq!(server.generate("worker=1&prompt=ab"), "ba");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_fails(&asking.join().expect("an answer"), "stuck");
    server.stops(&sandbox);
}

#[test]
fn an_answer_that_comes_too_late_is_given_to_nobody_else() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &["--answer-ms", "2000"], &[]);
    assert_eq!(server.get("/generate?worker=0&prompt=late").0, 504);
    // It comes now, before the answer to this.
    assert_eq!(server.generate("worker=0&prompt=ab"), "ba");
    server.stops(&sandbox);
}

#[test]
fn a_server_whose_workers_are_not_ready_yet_can_be_asked_to_end() {
    needs!(python, private_tracker);
    let sandbox = Sandbox::new();
    let mut server = Server::begin(&sandbox, &["--workers", "1"], &["mute"]);
    server.wait_for("a worker that says nothing", |line| line["mute"].is_u64());
    server.stops(&sandbox);
}

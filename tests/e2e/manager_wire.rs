//! Workers that do not speak as they should: every answer of the server comes, with its reason, and
//! nothing that a worker does blocks the manager.

#[expect(dead_code, reason = "manager.rs uses the rest")]
#[path = "manager/server.rs"]
mod server;

use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{Pidfd, Sandbox, private_lock};
use nix::sys::signal::Signal;
use serde_json::json;
use server::{Server, get, has_python, post};

/// What the server says to this prompt.
fn kind_of(prompt: &str) -> Option<String> {
    if !has_python() {
        return None;
    }
    let _lock = private_lock();
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    let (code, answer) = server.get(&format!("/generate?worker=0&prompt={prompt}"));
    assert_eq!(code, 500, "{answer}");
    // The other one is as well as before.
    assert_eq!(server.get("/generate?worker=1&prompt=ab").1["text"], "ba");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.finish().code, Some(0));
    assert_nobody(&sandbox);
    Some(answer["kind"].as_str().expect("a kind").to_owned())
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    assert!(kind_of("too-large").is_none_or(|kind| kind == "too_large"));
}

#[test]
fn a_message_that_is_not_json_is_refused() {
    assert!(kind_of("not-json").is_none_or(|kind| kind == "not_json"));
}

#[test]
fn a_message_that_is_cut_off_is_told_from_an_end() {
    if !has_python() {
        return;
    }
    let _lock = private_lock();
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[], &[]);
    let (code, answer) = server.get("/generate?worker=0&prompt=truncated");
    assert_eq!(
        (code, answer["kind"].as_str()),
        (500, Some("truncated")),
        "{answer}"
    );
}

#[test]
fn a_worker_that_dies_under_a_request_answers_it_with_its_cause() {
    if !has_python() {
        return;
    }
    let _lock = private_lock();
    let sandbox = Sandbox::new();
    let mut server = Server::start(&sandbox, &[], &[]);
    let port = server.port();
    let asking = thread::spawn(move || get(port, "/generate?worker=0&prompt=never"));
    server.wait_for("the request taken", |line| line["taken"] == "never");
    Pidfd::open(server.workers()[0]).expect("it lives").kill();
    let (code, answer) = asking.join().expect("an answer");
    assert_eq!(
        (code, answer["kind"].as_str()),
        (500, Some("worker_dead")),
        "{answer}"
    );
    assert_eq!(answer["error"], "Worker process died (pipe closed)");
    assert!(
        answer["cause"]
            .as_str()
            .is_some_and(|cause| cause.starts_with("SIGKILL")),
        "{answer}"
    );
}

#[test]
fn a_worker_that_hangs_while_it_receives_blocks_nobody() {
    if !has_python() {
        return;
    }
    let _lock = private_lock();
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
    // More than its socket takes.
    let ask =
        |prompt: String| thread::spawn(move || post(port, &json!({"worker": 0, "prompt": prompt})));
    let hanging = ask("hang".to_owned());
    server.wait_for("the request taken", |line| line["taken"] == "hang");
    let asking: Vec<_> = (0..6).map(|_| ask("y".repeat(200_000))).collect();
    let begun = Instant::now();
    assert_eq!(server.get("/health").1["status"], "ok");
    assert_eq!(server.get("/generate?worker=1&prompt=ab").1["text"], "ba");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let answers = asking
        .into_iter()
        .map(|asking| asking.join().expect("an answer"));
    let kinds: Vec<_> = answers.map(|(_, answer)| answer["kind"].clone()).collect();
    assert!(kinds.iter().any(|kind| kind == "stuck"), "{kinds:?}");
    _ = hanging.join();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.finish().code, Some(0));
    assert_nobody(&sandbox);
}

//! Waiting for a condition instead of sleeping: the one polling loop of the tests.

use std::thread;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(5);

/// Polls until the condition holds.
///
/// # Panics
/// When it does not within `deadline`; the message names `what`.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} in vain for: {what}"
        );
        thread::sleep(STEP);
    }
}

/// Polls until there is an answer, or the deadline has passed.
pub fn poll<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if start.elapsed() >= deadline {
            return None;
        }
        thread::sleep(STEP);
    }
}

//! JSON objects, one a line, from a pipe of another process: read by a thread, so that every
//! wait in a test has a deadline and a message that says what was seen instead.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Lines that a failure shows; more would hide them.
const TOLD_MAX: usize = 20;

/// What the reader thread passes on: a line, and the object in it or why there is none.
type Line<T> = (String, serde_json::Result<T>);

/// The stream and everything that it has said so far.
#[derive(Debug)]
pub struct JsonLines<T = Value> {
    source: String,
    incoming: Receiver<Line<T>>,
    seen: Vec<T>,
    texts: Vec<String>,
    ended: bool,
}

impl<T: DeserializeOwned + Clone + Send + 'static> JsonLines<T> {
    /// Starts to read. The thread ends with the pipe: when all that hold its other end are gone.
    pub(crate) fn read(source: String, pipe: impl Read + Send + 'static) -> Self {
        let (outgoing, incoming) = channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line);
                if outgoing.send((line, parsed)).is_err() {
                    break;
                }
            }
        });
        Self {
            source,
            incoming,
            seen: Vec::new(),
            texts: Vec::new(),
            ended: false,
        }
    }

    /// Returns the next object, or `None` when the stream has ended or the deadline has passed.
    ///
    /// # Panics
    /// When a line is not JSON, or has other fields than this type.
    pub fn next(&mut self, deadline: Duration) -> Option<T> {
        match self.incoming.recv_timeout(deadline) {
            Ok((line, Ok(value))) => {
                self.seen.push(value.clone());
                self.texts.push(line);
                Some(value)
            }
            Ok((line, Err(error))) => {
                panic!(
                    "{} printed a line that cannot be: {error}: {line}",
                    self.source
                )
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                None
            }
        }
    }

    /// Returns the first object that fits, among those already seen and those still to come.
    ///
    /// # Panics
    /// When none comes before the deadline or the end; the message lists everything seen.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, deadline: Duration, fits: impl Fn(&T) -> bool) -> T {
        if let Some(known) = self.seen.iter().find(|value| fits(value)) {
            return known.clone();
        }
        let start = Instant::now();
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            match self.next(left) {
                Some(value) if fits(&value) => return value,
                Some(_) => {}
                None => self.missing(what),
            }
        }
    }

    /// Reads until the stream ends or the deadline passes.
    pub fn drain(&mut self, deadline: Duration) {
        let start = Instant::now();
        while self
            .next(deadline.saturating_sub(start.elapsed()))
            .is_some()
        {}
    }

    /// Returns everything seen so far, in order.
    #[must_use]
    pub fn seen(&self) -> &[T] {
        &self.seen
    }

    /// Fails the test, with all that is known about why.
    #[track_caller]
    pub(crate) fn missing(&self, what: &str) -> ! {
        let how = if self.ended { "ended" } else { "was silent" };
        let skipped = self.texts.len().saturating_sub(TOLD_MAX);
        let seen = self.texts[skipped..].join("\n  ");
        let earlier = match skipped {
            0 => String::new(),
            skipped => format!(" (after {skipped} other lines)"),
        };
        panic!(
            "{} {how} before: {what}; it had said{earlier}:\n  {seen}",
            self.source
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_seen_earlier_is_still_found() {
        let mut lines = JsonLines::<Value>::read("test".into(), &b"{\"a\":1}\n{\"b\":2}\n"[..]);
        let long = Duration::from_secs(5);
        assert_eq!(lines.wait_for("b", long, |value| value["b"] == 2)["b"], 2);
        assert_eq!(lines.wait_for("a", long, |value| value["a"] == 1)["a"], 1);
        assert_eq!(lines.next(long), None);
        assert_eq!(lines.seen().len(), 2);
    }

    #[test]
    #[should_panic(expected = "test ended before: c; it had said:\n  {\"a\":1}")]
    fn what_never_comes_is_named() {
        let mut lines = JsonLines::<Value>::read("test".into(), &b"{\"a\":1}\n"[..]);
        lines.wait_for("c", Duration::from_secs(5), |value| value["c"] == 1);
    }
}

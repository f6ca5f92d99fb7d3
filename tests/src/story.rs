//! All that one `lifemon attach -o json` said. What must hold of every stream, whatever happened
//! to the tree, is checked when a story is made; what did happen is for the test to claim.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{Finished, Process, proc};

/// `2026-01-01T00:00:00.000000000Z`
const TIME_BYTES: usize = 30;

/// Events in order, from `attached` to `detached`.
#[derive(Debug)]
pub struct Story {
    events: Vec<Value>,
}

/// Whether a process in the output is this one.
#[must_use]
pub fn is_about(value: &Value, process: Process) -> bool {
    identity(value) == Some(process)
}

fn identity(value: &Value) -> Option<Process> {
    let pid = i32::try_from(value["pid"].as_i64()?).ok()?;
    let start_ticks = proc::ticks_of_ns(value["start_ns"].as_u64()?);
    Some(Process { pid, start_ticks })
}

/// The processes of an array in the output, in its order.
///
/// # Panics
/// When it is no array of processes.
#[must_use]
#[track_caller]
pub fn processes(array: &Value) -> Vec<Process> {
    let list = array.as_array().expect("an array");
    let identity = |value| identity(value).unwrap_or_else(|| panic!("no process: {value}"));
    list.iter().map(identity).collect()
}

/// A process that the output names, if it names one there.
#[must_use]
pub fn process(value: &Value) -> Option<Process> {
    identity(value)
}

/// The `exit` object of a process that called exit.
#[must_use]
pub fn exited(code: i32) -> Value {
    json!({"code": code, "signal": null, "core_dumped": false, "cause": "exited"})
}

impl Story {
    /// Takes what a complete, successful attach has said.
    #[track_caller]
    pub(crate) fn check(finished: Finished) -> Self {
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert_eq!(finished.stderr, "");
        let story = Self {
            events: finished.events,
        };
        story.check_frame();
        story.check_lives();
        story.check_summary();
        story
    }

    /// What every line has, with a tracker that does not know what was before it, and where the lines about the whole tree stand.
    #[track_caller]
    fn check_frame(&self) {
        let (first, last) = (self.attached(), &self.events[self.events.len() - 1]);
        assert_eq!(first["event"], "attached");
        assert_eq!(last["event"], "detached");
        for (event, seq) in self.events.iter().zip(1_u64..) {
            assert_eq!(event["schema"], "lifemon/2", "{event}");
            assert_eq!(event["seq"], seq, "{event}");
            assert_eq!(event["tree"], first["tree"], "{event}");
            assert!(time(event).is_some(), "{event}");
            assert!(event.get("resynced").is_none(), "{event}");
            assert_ne!(event["event"], "lost", "{event}");
            let is_whole = event["event"] != "attached" && event.get("process").is_some();
            assert_eq!(event.get("complete").is_none(), is_whole, "{event}");
            assert!(is_whole || event["complete"] == false, "{event}");
            if let Some(reasons) = event["incomplete"].as_array() {
                let reasons: Vec<_> = reasons.iter().map(|it| &it["reason"]).collect();
                assert_eq!(reasons, ["no_history"], "{event}");
            }
        }
        assert!(self.count("extinct") <= 1);
    }

    /// Each process is born at most once, dies at most once, is gone after that, and nothing
    /// happens to it outside its life; its own times never go backwards.
    #[track_caller]
    fn check_lives(&self) {
        let members = self.members().iter().map(|member| (key(member), "alive"));
        let mut states: BTreeMap<_, _> = members.collect();
        let mut times: BTreeMap<_, &str> = BTreeMap::new();
        for event in self
            .events
            .iter()
            .filter(|event| event.get("process").is_some())
        {
            let process = key(&event["process"]);
            let state = states.get(&process).copied();
            let word = event["event"].as_str().expect("a word");
            let next = match (state, word) {
                (None, "fork") | (Some("alive"), "exec" | "signal" | "orphaned") => "alive",
                // Of none: it was labelled, and died, before the members were read.
                (Some("alive") | None, "exit") => "dying",
                (Some("dying"), "gone") => "gone",
                _ => panic!("{word} of one that is {state:?}: {event}"),
            };
            states.insert(process, next);
            // `orphaned` has the time when we learn of it, which may be after its death.
            if word != "orphaned" {
                let now = time(event).expect("checked");
                let before = times.insert(process, now);
                let ordered = before.is_none_or(|before| before <= now);
                assert!(ordered, "{before:?} was before {event}");
            }
            let exits = word == "exit";
            assert_eq!(event["age_ms"].is_u64(), exits, "{event}");
            assert_eq!(event["orphans"].is_array(), exits, "{event}");
            assert_eq!(event["after_us"].is_u64(), word == "gone", "{event}");
        }
        if let Some(end) = self
            .events
            .iter()
            .position(|event| event["event"] == "extinct")
        {
            let last_exit = self
                .events
                .iter()
                .rposition(|event| event["event"] == "exit");
            assert!(last_exit < Some(end), "extinct, and then an exit");
            states.retain(|_, state| *state != "gone");
            let is_told = |event: &&Value| {
                event["event"] == "lost"
                    || event
                        .get("process")
                        .is_some_and(|it| states.contains_key(&key(it)))
            };
            let told: Vec<_> = self.events.iter().filter(is_told).collect();
            assert!(
                states.is_empty(),
                "not gone at the end: {states:?} {told:?}"
            );
        }
    }

    /// The closing counts are those of the lines.
    #[track_caller]
    fn check_summary(&self) {
        let summary = self.summary();
        let seen = self.processes().len();
        assert_eq!(summary["seen"], seen, "{summary}");
        assert_eq!(summary["lost_events"], 0, "{summary}");
        assert_eq!(summary["resynced"], 0, "{summary}");
        let mut exits: BTreeMap<String, u64> = BTreeMap::new();
        for exit in self.events.iter().filter(|event| event["event"] == "exit") {
            let cause = exit["exit"]["cause"].as_str().expect("a cause");
            *exits.entry(cause.to_owned()).or_default() += 1;
        }
        assert_eq!(summary["exits"], json!(exits));
        if self.count("extinct") == 1 {
            assert_eq!(seen, self.count("exit"));
            assert_eq!(summary["alive"], 0, "{summary}");
            assert_eq!(summary["orphans"], json!([]), "{summary}");
        }
    }

    /// The first line.
    #[must_use]
    pub fn attached(&self) -> &Value {
        &self.events[0]
    }

    /// What lived when it was attached.
    ///
    /// # Panics
    /// When the first line has no members.
    #[must_use]
    pub fn members(&self) -> &[Value] {
        self.attached()["members"].as_array().expect("members")
    }

    /// The counts of the last line.
    #[must_use]
    pub fn summary(&self) -> &Value {
        &self.events[self.events.len() - 1]["summary"]
    }

    /// All lines, in order.
    #[must_use]
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Every process that was alive at the beginning or that something happened to.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<(u64, u64)> {
        let later = self.events.iter().filter_map(|event| event.get("process"));
        self.members().iter().chain(later).map(key).collect()
    }

    /// How many events of this kind there are.
    #[must_use]
    pub fn count(&self, event: &str) -> usize {
        self.all(event).count()
    }

    /// Every event of this kind, in order.
    pub fn all(&self, event: &str) -> impl Iterator<Item = &Value> {
        self.events
            .iter()
            .filter(move |seen| seen["event"] == event)
    }

    /// The only event of this kind about this process.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[must_use]
    #[track_caller]
    pub fn the(&self, event: &str, process: Process) -> &Value {
        let mut all = self
            .all(event)
            .filter(|seen| is_about(&seen["process"], process));
        match (all.next(), all.next()) {
            (Some(only), None) => only,
            found => panic!("not one {event} of {process:?}: {found:?}"),
        }
    }

    /// What happened to each process, as words in order: exactly this, and nothing to any other.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn assert_exactly(&self, expected: &[(Process, &str)]) {
        let mut lives: BTreeMap<Process, Vec<&str>> = BTreeMap::new();
        for event in &self.events {
            if let Some(process) = event.get("process").and_then(identity) {
                let word = event["event"].as_str().expect("a word");
                lives.entry(process).or_default().push(word);
            }
        }
        let lives: BTreeMap<_, _> = lives
            .into_iter()
            .map(|(process, words)| (process, words.join(" ")))
            .collect();
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(process, words)| (*process, (*words).to_owned()))
            .collect();
        assert_eq!(lives, expected);
    }
}

/// The whole identity, not only to the clock tick: pid and `start_ns`.
///
/// # Panics
/// When it is no process.
#[must_use]
#[track_caller]
pub fn key(value: &Value) -> (u64, u64) {
    let number = |name: &str| {
        value[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {value}"))
    };
    (number("pid"), number("start_ns"))
}

/// The time of an event; two of them compare as text. `None` when it is not in the one format.
#[must_use]
pub fn time(event: &Value) -> Option<&str> {
    let text = event["time"].as_str()?;
    let shape = text
        .bytes()
        .map(|byte| if byte.is_ascii_digit() { b'0' } else { byte });
    (text.len() == TIME_BYTES && shape.eq(*b"0000-00-00T00:00:00.000000000Z")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(events: &[Value]) -> Finished {
        let common = json!({
            "schema": "lifemon/2",
            "tree": {"pid": 1, "start_ns": 5},
            "time": "2026-01-01T00:00:00.000000000Z",
        });
        let line = |(event, seq): (&Value, u64)| {
            let mut line = common.clone();
            line["seq"] = seq.into();
            let fields = event.as_object().expect("an object").clone();
            line.as_object_mut().expect("an object").extend(fields);
            line
        };
        Finished {
            code: Some(0),
            events: events.iter().zip(1..).map(line).collect(),
            stderr: String::new(),
        }
    }

    fn attached() -> Value {
        json!({"event": "attached", "members": [{"pid": 1, "start_ns": 5}], "complete": false})
    }

    fn exit() -> Value {
        json!({"event": "exit", "process": {"pid": 1, "start_ns": 5}, "age_ms": 1, "orphans": [],
            "exit": {"cause": "exited"}})
    }

    fn detached(exits: u64) -> Value {
        let exits = if exits == 0 {
            json!({})
        } else {
            json!({"exited": exits})
        };
        let summary = json!({"seen": 1, "exits": exits, "alive": 0, "orphans": [],
            "lost_events": 0, "resynced": 0});
        json!({"event": "detached", "complete": false, "summary": summary})
    }

    #[test]
    fn a_stream_that_agrees_with_itself_is_a_story() {
        let story = Story::check(finished(&[attached(), exit(), detached(1)]));
        let root = Process {
            pid: 1,
            start_ticks: 0,
        };
        story.assert_exactly(&[(root, "exit")]);
        assert_eq!(story.the("exit", root)["age_ms"], 1);
    }

    #[test]
    #[should_panic(expected = "exit of one that is Some(\"dying\")")]
    fn a_process_that_dies_twice_is_none() {
        _ = Story::check(finished(&[attached(), exit(), exit(), detached(2)]));
    }

    #[test]
    #[should_panic(expected = "\"exited\"")]
    fn counts_that_are_not_those_of_the_lines_are_none() {
        _ = Story::check(finished(&[attached(), exit(), detached(0)]));
    }

    #[test]
    fn a_time_has_nine_digits_of_a_second() {
        assert!(time(&json!({"time": "2026-01-01T00:00:00.000000000Z"})).is_some());
        assert!(time(&json!({"time": "2026-01-01T00:00:00.000Z"})).is_none());
        assert!(time(&json!({})).is_none());
    }
}

//! All that one `lifemon attach -o json` said. What must hold of every stream, whatever happened
//! to the tree, is checked when a story is made; what did happen is for the test to claim.

use std::collections::{BTreeMap, BTreeSet};

use crate::reports::{
    About, Attached, Detached, Event, Exit, Exited, Extinct, Id, Identified, Line, Lost, Member,
    Summary,
};
use crate::{Finished, Process};

/// `2026-01-01T00:00:00.000000000Z`
const TIME_BYTES: usize = 30;

/// Events in order, from `attached` to `detached`.
#[derive(Debug)]
pub struct Story {
    events: Vec<Event>,
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

    /// Checks what every line has, with a tracker that does not know what was before it, and where
    /// the lines about the whole tree stand.
    #[track_caller]
    fn check_frame(&self) {
        let (tree, last) = (self.attached().tree, &self.events[self.events.len() - 1]);
        assert_eq!(last.word(), Detached::WORD);
        for (event, seq) in self.events.iter().zip(1_u64..) {
            let frame = event.frame();
            assert_eq!(frame.schema, "lifemon/2", "{event:?}");
            assert_eq!(frame.seq, seq, "{event:?}");
            assert_eq!(frame.tree, tree, "{event:?}");
            assert!(frame.time.is_some_and(is_time), "{event:?}");
            assert!(!event.is_resynced(), "{event:?}");
            assert_ne!(event.word(), Lost::WORD, "{event:?}");
            assert_ne!(event.is_complete(), Some(true), "{event:?}");
            let reasons = event.incomplete().iter().map(|it| it.reason.as_str());
            assert!(
                reasons.eq(event.incomplete().iter().map(|_| "no_history")),
                "{event:?}"
            );
        }
        assert_eq!(self.count::<Attached>() + self.count::<Detached>(), 2);
        assert!(self.count::<Extinct>() <= 1);
    }

    /// Checks that each process is born at most once, dies at most once, is gone after that, and
    /// nothing happens to it outside its life; its own times never go backwards.
    #[track_caller]
    fn check_lives(&self) {
        let members = self.members().iter();
        let mut states: BTreeMap<_, _> = members.map(|member| (member.id(), "alive")).collect();
        let mut times: BTreeMap<_, &str> = BTreeMap::new();
        for event in &self.events {
            let Some(process) = event.subject().map(Identified::id) else {
                continue;
            };
            let state = states.get(&process).copied();
            let next = match (state, event.word()) {
                (None, "fork") | (Some("alive"), "exec" | "signal" | "orphaned") => "alive",
                // Of none: it was labelled, and died, before the members were read.
                (Some("alive") | None, "exit") => "dying",
                (Some("dying"), "gone") => "gone",
                (_, word) => panic!("{word} of one that is {state:?}: {event:?}"),
            };
            states.insert(process, next);
            // `orphaned` has the time when we learn of it, which may be after its death.
            if !matches!(event, Event::Orphaned(_)) {
                let now = event.frame().time.expect("checked");
                let before = times.insert(process, now);
                let ordered = before.is_none_or(|before| before <= now);
                assert!(ordered, "{before:?} was before {event:?}");
            }
            match event {
                Event::Exit(exit) => assert!(exit.age_ms.is_some(), "{exit:?}"),
                Event::Gone(gone) => assert!(gone.after_us.is_some(), "{gone:?}"),
                _ => {}
            }
        }
        let at = |event: &Event| matches!(event, Event::Extinct(_));
        if let Some(end) = self.events.iter().position(at) {
            let is_exit = |event: &Event| matches!(event, Event::Exit(_));
            let last_exit = self.events.iter().rposition(is_exit);
            assert!(last_exit < Some(end), "extinct, and then an exit");
            states.retain(|_, state| *state != "gone");
            let is_told = |event: &&Event| {
                let subject = event.subject();
                subject.is_some_and(|subject| states.contains_key(&subject.id()))
            };
            let told: Vec<_> = self.events.iter().filter(is_told).collect();
            assert!(
                states.is_empty(),
                "not gone at the end: {states:?} {told:?}"
            );
        }
    }

    /// Checks that the closing counts are those of the lines.
    #[track_caller]
    fn check_summary(&self) {
        let summary = self.summary();
        let seen = self.processes().len();
        assert_eq!(summary.seen, seen as u64, "{summary:?}");
        let losses = (summary.lost_events, summary.resynced);
        assert_eq!(losses, (0, 0), "{summary:?}");
        let mut exits: BTreeMap<String, u64> = BTreeMap::new();
        for exit in self.all::<Exited>() {
            *exits.entry(exit.death().cause.clone()).or_default() += 1;
        }
        assert_eq!(summary.exits, exits);
        if self.count::<Extinct>() == 1 {
            assert_eq!(seen, self.count::<Exited>());
            assert_eq!(
                (summary.alive, summary.orphans.len()),
                (0, 0),
                "{summary:?}"
            );
        }
    }

    /// Returns the first line.
    ///
    /// # Panics
    /// When that is another than `attached`.
    #[must_use]
    #[track_caller]
    pub fn attached(&self) -> &Attached {
        let first = &self.events[0];
        Attached::of(first).unwrap_or_else(|| panic!("the first line is {first:?}"))
    }

    /// Returns what lived when it was attached.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.attached().members
    }

    /// Returns the counts of the last line.
    ///
    /// # Panics
    /// When that is another than `detached`.
    #[must_use]
    #[track_caller]
    pub fn summary(&self) -> &Summary {
        let last = &self.events[self.events.len() - 1];
        let detached = Detached::of(last).unwrap_or_else(|| panic!("the last line is {last:?}"));
        &detached.summary
    }

    /// Returns all lines, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Returns every process that was alive at the beginning or that something happened to.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<Id> {
        let later = self.events.iter().filter_map(Event::subject);
        let members = self.members().iter().map(Identified::id);
        members.chain(later.map(Identified::id)).collect()
    }

    /// Returns how many lines of this kind there are.
    #[must_use]
    pub fn count<K: Line + 'static>(&self) -> usize {
        self.all::<K>().count()
    }

    /// Returns every line of this kind, in order.
    pub fn all<K: Line + 'static>(&self) -> impl Iterator<Item = &K> {
        self.events.iter().filter_map(K::of)
    }

    /// Returns every line about this process, in order.
    pub fn about(&self, process: Process) -> impl Iterator<Item = &Event> {
        let is_about = move |event: &&Event| {
            let subject = event.subject();
            subject.is_some_and(|subject| subject.process() == process)
        };
        self.events.iter().filter(is_about)
    }

    /// Returns the only line of this kind about this process.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[must_use]
    #[track_caller]
    pub fn the<K: About + 'static>(&self, process: Process) -> &K {
        let mut all = self.about(process).filter_map(K::of);
        match (all.next(), all.next()) {
            (Some(only), None) => only,
            found => panic!("not one {} of {process:?}: {found:?}", K::WORD),
        }
    }

    /// Returns how this process died.
    ///
    /// # Panics
    /// When it has not died once.
    #[must_use]
    #[track_caller]
    pub fn death(&self, process: Process) -> &Exit {
        self.the::<Exited>(process).death()
    }

    /// Claims what happened to each process, as words in order, and that nothing happened to any
    /// other.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn assert_exactly(&self, expected: &[(Process, &str)]) {
        let mut lives: BTreeMap<Process, Vec<&str>> = BTreeMap::new();
        for event in &self.events {
            if let Some(subject) = event.subject() {
                let life = lives.entry(subject.process()).or_default();
                life.push(event.word());
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

/// Returns whether a time is in the one format; two of them compare as text.
#[must_use]
pub fn is_time(text: &str) -> bool {
    let shape = text
        .bytes()
        .map(|byte| if byte.is_ascii_digit() { b'0' } else { byte });
    text.len() == TIME_BYTES && shape.eq(*b"0000-00-00T00:00:00.000000000Z")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::reports::read;

    fn finished(events: &[Value]) -> Finished {
        let common = json!({
            "schema": "lifemon/2",
            "kind": "event",
            "tree": {"pid": 1, "start_ns": 5},
            "time": "2026-01-01T00:00:00.000000000Z",
        });
        let line = |(event, seq): (&Value, u64)| {
            let mut line = common.clone();
            line["seq"] = seq.into();
            let fields = event.as_object().expect("an object").clone();
            line.as_object_mut().expect("an object").extend(fields);
            read(&line)
        };
        Finished {
            code: Some(0),
            events: events.iter().zip(1..).map(line).collect(),
            stderr: String::new(),
        }
    }

    fn attached() -> Value {
        let root = json!({"pid": 1, "start_ns": 5});
        json!({"event": "attached", "root": root, "members": [root], "ghosts": [],
            "since": "2026-01-01T00:00:00.000000000Z", "tracker": "private", "complete": false})
    }

    fn exit() -> Value {
        let exit = json!({"code": 0, "signal": null, "core_dumped": false, "cause": "exited"});
        json!({"event": "exit", "process": {"pid": 1, "start_ns": 5}, "age_ms": 1, "orphans": [],
            "exit": exit})
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
        assert_eq!(story.the::<Exited>(root).age_ms, Some(1));
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
        assert!(is_time("2026-01-01T00:00:00.000000000Z"));
        assert!(!is_time("2026-01-01T00:00:00.000Z"));
        assert!(!is_time(""));
    }
}

//! The events that are kept, for all streams: each reads at its own pace, and what is not kept any
//! more is not passed over in silence.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use crate::ProcessId;

/// Bytes that the events take which are kept for those who come back.
const REPLAY_BYTES: u64 = 8 << 20;

/// A watch that an event is for.
#[derive(Debug, Clone)]
pub(super) struct Whose {
    /// Its id.
    pub(super) watch: Arc<str>,
    /// The account that has made it.
    pub(super) account: Arc<str>,
}

/// An event that is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Its number, from 1 on.
    pub(super) seq: u64,
    /// Bytes of all events up to this one.
    bytes: u64,
    /// The watches that it is for.
    pub(super) whose: Arc<[Whose]>,
    /// The root of their tree.
    pub(super) root: ProcessId,
    /// Its word.
    pub(super) kind: String,
    /// The user of the process that it is about.
    pub(super) uid: Option<u32>,
    /// The line.
    pub(super) line: Arc<str>,
}

impl Kept {
    /// Makes an event of a line; `None` where it is none.
    pub(super) fn of_line(whose: &Arc<[Whose]>, root: ProcessId, line: &str) -> Option<Self> {
        let value = serde_json::from_str::<Value>(line).ok()?;
        let uid = value["process"]["uid"].as_u64();
        Some(Self {
            seq: 0,
            bytes: 0,
            whose: Arc::clone(whose),
            root,
            kind: value["event"].as_str().unwrap_or_default().to_owned(),
            uid: uid.and_then(|uid| u32::try_from(uid).ok()),
            line: line.into(),
        })
    }

    /// Returns the bytes that it takes here: a line is short beside what is kept with it.
    fn size(&self) -> u64 {
        (size_of::<Self>() + self.kind.len() + self.line.len()) as u64
    }

    /// Returns whether it is for this watch.
    pub(super) fn is_for(&self, watch: &str) -> bool {
        self.whose.iter().any(|whose| *whose.watch == *watch)
    }
}

/// The events that are kept.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    lines: VecDeque<Kept>,
    /// The number of the last event.
    pub(super) seq: u64,
    /// Bytes of all events ever.
    bytes: u64,
    held: u64,
}

impl Buffer {
    /// Keeps an event, and forgets the oldest where that is too much.
    pub(super) fn push(&mut self, mut kept: Kept) {
        self.seq += 1;
        self.bytes += kept.line.len() as u64;
        self.held += kept.size();
        (kept.seq, kept.bytes) = (self.seq, self.bytes);
        self.lines.push_back(kept);
        while self.held > REPLAY_BYTES
            && let Some(oldest) = self.lines.pop_front()
        {
            self.held -= oldest.size();
        }
    }

    /// Returns whether all that came after `seq` is kept, and `seq` is a number that was.
    pub(super) fn has_all_after(&self, seq: u64) -> bool {
        self.place_after(seq).is_some()
    }

    /// Returns whether one of those that are kept and came after `seq` is meant.
    pub(super) fn has_after(&self, seq: u64, is_meant: impl Fn(&Kept) -> bool) -> bool {
        let mut newer = self.lines.iter().rev().take_while(|kept| kept.seq > seq);
        newer.any(is_meant)
    }

    /// Returns where what came after `seq` begins; `None` where some of it is not kept any more.
    fn place_after(&self, seq: u64) -> Option<usize> {
        let first = self.lines.front().map_or(self.seq + 1, |kept| kept.seq);
        if seq > self.seq || seq + 1 < first {
            return None;
        }
        usize::try_from(seq + 1 - first).ok()
    }

    /// Returns what comes after `seq`; `None` where some of it is not kept any more, or what comes
    /// after the next event is too much for one who is to keep up.
    pub(super) fn after(&self, seq: u64, most: u64) -> Option<Vec<Kept>> {
        let skipped = self.place_after(seq)?;
        let next = self.lines.get(skipped);
        // One line alone may be longer than what somebody may be behind.
        let up_to_next = next.map_or(self.bytes, |next| next.bytes);
        (self.bytes - up_to_next <= most)
            .then(|| self.lines.iter().skip(skipped).cloned().collect())
    }

    /// Returns whether an event of a watch of this account is kept.
    pub(super) fn knows(&self, watch: &str, is_own: impl Fn(&str) -> bool) -> bool {
        let is_it = |whose: &Whose| *whose.watch == *watch && is_own(&whose.account);
        self.lines.iter().any(|kept| kept.whose.iter().any(is_it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(line: &str) -> Kept {
        let whose = [Whose {
            watch: "w".into(),
            account: "uid 1".into(),
        }];
        let line = format!("{{\"event\":\"fork\",\"x\":\"{line}\"}}");
        Kept::of_line(&whose.into(), ProcessId::new(7, 7), &line).unwrap()
    }

    #[test]
    fn what_is_not_kept_any_more_is_not_passed_over_in_silence() {
        let mut buffer = Buffer::default();
        assert_eq!(buffer.after(0, 10).map(|events| events.len()), Some(0));
        assert!(buffer.after(1, 10).is_none(), "nobody has had it");
        let line = "x".repeat((1 << 20) - 23);
        assert_eq!(kept(&line).line.len(), 1 << 20);
        for _ in 0..20 {
            buffer.push(kept(&line));
        }
        assert!(buffer.after(0, u64::MAX).is_none());
        assert!(!buffer.has_all_after(0) && !buffer.has_all_after(21));
        assert!(buffer.has_all_after(18) && buffer.has_all_after(20));
        assert!(buffer.has_after(18, |kept| kept.seq == 19));
        assert!(!buffer.has_after(19, |kept| kept.seq == 19));
        assert_eq!(
            buffer.after(18, u64::MAX).map(|events| events.len()),
            Some(2)
        );
        assert!(buffer.after(18, (1 << 20) - 1).is_none(), "too far behind");
        // A line that is longer than that alone is not.
        assert_eq!(buffer.after(19, 0).map(|events| events.len()), Some(1));
        assert_eq!(buffer.after(20, 0).map(|events| events.len()), Some(0));
        assert!(buffer.held <= REPLAY_BYTES);
    }

    #[test]
    fn a_watch_is_known_to_its_account_as_long_as_an_event_of_it_is_kept() {
        let mut buffer = Buffer::default();
        buffer.push(kept("a"));
        assert!(buffer.knows("w", |account| account == "uid 1"));
        assert!(!buffer.knows("w", |account| account == "uid 2"));
        assert!(!buffer.knows("v", |_| true));
    }
}

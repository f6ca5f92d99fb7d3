//! Reads the flight recorder of the pinned tracker: the host's last deaths that somebody may ask
//! about, in their order, and from when on nothing is missing.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use lifemon_ebpf::{LogEntry, LogShare, limits, recorder};

use super::shared::{Shared, View};
use super::{Error, sys};

lifemon_ebpf::view! {
    /// The state of the flight recorder, as userspace sees it.
    RecorderView of lifemon_ebpf::Recorder {
        recorded: AtomicU64,
        overwritten: AtomicU64,
        users: AtomicU64,
        growths: AtomicU64,
        shared: AtomicU64,
    }
}

// SAFETY: atomic integers only.
unsafe impl View for RecorderView {}

/// The maps of the flight recorder.
pub(super) struct Recorder {
    log: OwnedFd,
    shares: OwnedFd,
    state: Shared<RecorderView>,
}

/// What the flight recorder has.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The deaths, the oldest first.
    pub entries: Vec<LogEntry>,
    /// Deaths that were recorded since tracking began.
    pub recorded: u64,
    /// Those of them that later ones have taken the place of.
    pub overwritten: u64,
    /// Entries that fit.
    pub capacity: u32,
    /// For each user of whom something was overwritten, when the oldest death was that is kept;
    /// later users, who share one place, are all `None`.
    kept_since: HashMap<Option<u32>, u64>,
    /// Users who have a place of their own.
    users: Vec<u32>,
}

impl Log {
    /// Returns since when nothing of this user, or of anybody, was overwritten, in ns since boot; 0
    /// where nothing was.
    #[must_use]
    pub fn whole_since_ns(&self, uid: Option<u32>) -> u64 {
        match uid {
            None => self.kept_since.values().copied().max().unwrap_or_default(),
            Some(uid) => {
                let share = self.users.contains(&uid).then_some(uid);
                self.kept_since.get(&share).copied().unwrap_or_default()
            }
        }
    }
}

impl Recorder {
    /// Opens its maps by their names.
    pub(super) fn open(
        map: impl Fn(&'static str) -> Result<OwnedFd, Error>,
    ) -> Result<Self, Error> {
        Ok(Self {
            log: map("LOG")?,
            shares: map("LOG_SHARES")?,
            state: Shared::new(map("RECORDER")?, 1).map_err(Error::Map)?,
        })
    }

    /// Returns the number of deaths that were recorded, and of those that were overwritten.
    pub(super) fn counters(&self) -> (u64, u64) {
        let state = self.state.at(0);
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (read(&state.recorded), read(&state.overwritten))
    }

    /// Reads all of it.
    pub(super) fn read(&self) -> io::Result<Log> {
        let shares = sys::read_all::<u32, LogShare>(self.shares.as_fd())?;
        let all = sys::read_all::<u32, LogEntry>(self.log.as_fd())?;
        let is_whole = |entry: &LogEntry| entry.begun != 0 && entry.begun == entry.ended;
        let state = self.state.at(0);
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let mut log = Log {
            recorded: read(&state.recorded),
            overwritten: read(&state.overwritten),
            capacity: limits::LOG_ENTRIES,
            users: shares.iter().map(|(uid, _)| *uid).collect(),
            ..Log::default()
        };
        let shard = u64::from(limits::LOG_SHARD);
        let full = shares
            .iter()
            .filter(|(_, share)| share.position > share.count * shard)
            .map(|(uid, _)| Some(*uid));
        let later = (read(&state.shared) > shard).then_some(None);
        for user in full.chain(later) {
            let is_of = |entry: &&LogEntry| match user {
                Some(uid) => entry.uid == uid,
                None => !log.users.contains(&entry.uid),
            };
            let kept = all.iter().map(|(_, entry)| entry);
            let oldest = kept.filter(|entry| is_whole(entry)).filter(is_of);
            let oldest = oldest.map(|entry| entry.time_ns).min();
            log.kept_since.insert(user, oldest.unwrap_or(u64::MAX));
        }
        log.entries = all.into_iter().map(|(_, entry)| entry).collect();
        log.entries.retain(is_whole);
        log.entries.sort_unstable_by_key(|entry| entry.begun);
        Ok(log)
    }
}

const _: () = assert!(recorder::SHARDS > 1);

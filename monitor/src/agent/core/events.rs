//! Watches and their events: each watched tree has a kernel ring of its own, which a thread reads;
//! what it reads goes into one buffer, from which every stream reads at its own pace. A stream that
//! falls behind gets `lost` and a fresh snapshot, and delays nobody.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::kernel::{LoadOptions, Tracker, WatchOptions};
use crate::process::Process;
use crate::report::stream::Printer;
use crate::session::{Session, Start, Update};
use crate::{ProcessId, report};

use super::fronts::Front;
use super::{Core, lock};
use crate::agent::call::{Answer, EventsQuery, WatchRequest};
use crate::agent::limits::{Good, Taken};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::rights::Reach;
use crate::agent::token;
use crate::agent::view::View;
use crate::sys::runtime::current_thread;

/// Bytes that the events take which are kept for those who come back.
const REPLAY_BYTES: u64 = 8 << 20;
/// Bytes that a stream may be behind.
const BEHIND_BYTES: u64 = 1 << 20;
/// Bytes of a stream that are under way to its front at most.
const FLOW_BYTES: u64 = 256 << 10;
/// The time between two signs of life on a stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The watches, and what they have seen.
#[derive(Default)]
pub(super) struct Events {
    watches: Mutex<HashMap<String, Watched>>,
    buffer: Mutex<Buffer>,
    /// The number of the last event, for those who wait.
    last: watch::Sender<u64>,
}

struct Watched {
    account: String,
    root: ProcessId,
    commands: mpsc::UnboundedSender<oneshot::Sender<String>>,
    _taken: Taken,
}

/// The events that are kept.
#[derive(Default)]
struct Buffer {
    lines: VecDeque<Kept>,
    seq: u64,
    /// Bytes of all events ever.
    bytes: u64,
    held: u64,
}

#[derive(Clone)]
struct Kept {
    seq: u64,
    /// Bytes of all events up to this one.
    bytes: u64,
    account: Arc<str>,
    root: ProcessId,
    kind: String,
    /// The user of the process that it is about.
    uid: Option<u32>,
    line: Arc<str>,
}

impl Kept {
    /// Returns the bytes that it takes here: a line is short beside what is kept with it.
    fn size(&self) -> u64 {
        (size_of::<Self>() + self.kind.len() + self.line.len()) as u64
    }
}

impl Buffer {
    fn push(&mut self, mut kept: Kept) {
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

    /// Returns what comes after `seq`; `None` where some of it is not kept any more, or it is too
    /// much for one who is to keep up.
    fn after(&self, seq: u64, most: u64) -> Option<Vec<Kept>> {
        if seq > self.seq {
            return None;
        }
        let first = self.lines.front().map_or(self.seq + 1, |kept| kept.seq);
        if seq + 1 < first {
            return None;
        }
        let skipped = usize::try_from(seq + 1 - first).ok()?;
        let next = self.lines.get(skipped);
        let before = next.map_or(self.bytes, |next| next.bytes - next.line.len() as u64);
        (self.bytes - before <= most).then(|| self.lines.iter().skip(skipped).cloned().collect())
    }
}

impl Events {
    /// Begins to watch a tree for a caller.
    pub(super) async fn watch(
        core: &Arc<Core>,
        peer: &Arc<Peer>,
        request: WatchRequest,
    ) -> Result<Answer, Problem> {
        let account = peer.account();
        let taken = core.limits().take(Good::Tree, &account)?;
        let caller = Arc::clone(peer);
        let root = core
            .at_work(peer, move |core| {
                let snapshot = core.snapshot()?;
                View::new(&snapshot, &caller).find(&request.process, core.handles())
            })
            .await?;
        let id = token::new();
        let (commands, asked) = mpsc::unbounded_channel();
        let (begun, has_begun) = oneshot::channel();
        let (core_, of, whose) = (
            Arc::clone(core),
            id.clone(),
            Arc::<str>::from(account.as_str()),
        );
        let run = move || {
            let runtime = current_thread();
            if let Ok(runtime) = runtime {
                runtime.block_on(follow(&core_, root, &whose, asked, begun));
            }
            lock(&core_.events().watches).remove(&of);
        };
        let started = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(run);
        started.map_err(|error| Problem::new(Code::Unavailable, error.to_string()))?;
        let failed = || Problem::new(Code::Internal, "the watch has ended at once");
        has_begun.await.map_err(|_| failed())??;
        let watched = Watched {
            account,
            root,
            commands,
            _taken: taken,
        };
        let answer = watched.json(&id);
        lock(&core.events().watches).insert(id, watched);
        Ok(Answer::object(201, &answer))
    }

    /// Lists the watches of a caller's account.
    pub(super) fn list(&self, peer: &Peer) -> Answer {
        let watches = lock(&self.watches);
        let own = watches.iter();
        let own =
            own.filter(|(_, watched)| watched.account == peer.account() || peer.is_operator());
        let own: Vec<_> = own.map(|(id, watched)| watched.json(id)).collect();
        Answer::object(200, &json!({"watches": own}))
    }

    /// Ends a watch.
    pub(super) fn unwatch(&self, peer: &Peer, id: &str) -> Result<Answer, Problem> {
        let mut watches = lock(&self.watches);
        let is_own = watches
            .get(id)
            .is_some_and(|watched| watched.account == peer.account() || peer.is_operator());
        if !is_own {
            return Err(Problem::new(
                Code::NoSuchKill,
                format!("no watch {id} of yours"),
            ));
        }
        watches.remove(id);
        Ok(Answer::object(200, &json!({"id": id, "state": "ended"})))
    }

    fn push(&self, account: &Arc<str>, root: ProcessId, text: &str) {
        let mut buffer = lock(&self.buffer);
        for line in text.lines().filter(|line| !line.is_empty()) {
            let Ok(value) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let uid = value["process"]["uid"].as_u64();
            buffer.push(Kept {
                seq: 0,
                bytes: 0,
                account: Arc::clone(account),
                root,
                kind: value["event"].as_str().unwrap_or_default().to_owned(),
                uid: uid.and_then(|uid| u32::try_from(uid).ok()),
                line: line.into(),
            });
        }
        let last = buffer.seq;
        drop(buffer);
        self.last.send_replace(last);
    }

    /// Streams events to a caller until it goes.
    pub(super) async fn stream(
        core: &Arc<Core>,
        peer: &Arc<Peer>,
        front: &Arc<Front>,
        number: u64,
        query: EventsQuery,
    ) -> Result<(), Problem> {
        let _taken = core.limits().take(Good::Stream, &peer.account())?;
        let tree = match query.tree {
            None => None,
            Some(name) => {
                let caller = Arc::clone(peer);
                let found = core.at_work(peer, move |core| {
                    let snapshot = core.snapshot()?;
                    View::new(&snapshot, &caller).find(&name, core.handles())
                });
                Some(found.await?)
            }
        };
        let kinds = query
            .kinds
            .map(|kinds| kinds.split(',').map(str::to_owned).collect());
        let mut stream = Stream {
            core,
            peer,
            front,
            number,
            tree,
            kinds,
            at: lock(&core.events().buffer).seq,
        };
        let after = query.after.as_deref().map(read_after).transpose()?;
        // Ends with the task: whoever forgets the question aborts it.
        let _end = EndOfStream { front, number };
        match after {
            None => {
                stream.snapshot(None).await;
            }
            Some((epoch, seq)) => {
                let is_kept = epoch == core.epoch()
                    && lock(&core.events().buffer).after(seq, u64::MAX).is_some();
                if is_kept {
                    stream.at = seq;
                    stream.send(json!({"event": "resumed"}));
                } else {
                    let reason = if epoch == core.epoch() {
                        "overrun"
                    } else {
                        "restarted"
                    };
                    stream.snapshot(Some(reason)).await;
                }
            }
        }
        let mut last = core.events().last.subscribe();
        loop {
            if !stream.catch_up().await {
                return Ok(());
            }
            let changed = timeout(HEARTBEAT, last.changed()).await;
            if changed.is_err() && !stream.send(json!({"event": "heartbeat"})) {
                return Ok(());
            }
        }
    }
}

/// Ends a stream for its front, however its task ends.
struct EndOfStream<'a> {
    front: &'a Arc<Front>,
    number: u64,
}

impl Drop for EndOfStream<'_> {
    fn drop(&mut self) {
        self.front.end_stream(self.number);
    }
}

/// A stream to one caller.
struct Stream<'a> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    front: &'a Front,
    number: u64,
    tree: Option<ProcessId>,
    kinds: Option<Vec<String>>,
    /// The last event that it has had.
    at: u64,
}

impl Stream<'_> {
    /// Sends what has come since; returns false where nobody listens any more.
    async fn catch_up(&mut self) -> bool {
        loop {
            self.front.has_room(self.number, FLOW_BYTES).await;
            let events = lock(&self.core.events().buffer).after(self.at, BEHIND_BYTES);
            let Some(events) = events else {
                if !self.snapshot(Some("slow_reader")).await {
                    return false;
                }
                continue;
            };
            let Some(last) = events.last().map(|kept| kept.seq) else {
                return true;
            };
            let mut text = String::new();
            for kept in &events {
                self.at = kept.seq;
                if self.shows(kept) {
                    text.push_str(&self.numbered(kept.seq, &kept.line));
                }
                if text.len() as u64 > FLOW_BYTES {
                    break;
                }
            }
            if !text.is_empty() && !self.front.stream(self.number, text.into_bytes()) {
                return false;
            }
            if self.at == last {
                return true;
            }
        }
    }

    fn shows(&self, kept: &Kept) -> bool {
        let is_own = *kept.account == *self.peer.account() || self.peer.is_operator();
        let is_user = self.peer.rights.sees == Reach::User;
        let is_foreign = is_user && kept.uid.is_some_and(|uid| uid != self.peer.uid);
        is_own && !is_foreign && self.wants(kept.root, &kept.kind)
    }

    fn wants(&self, root: ProcessId, kind: &str) -> bool {
        let kinds = self.kinds.as_ref();
        self.tree.is_none_or(|tree| tree == root)
            && (kind == "lost" || kinds.is_none_or(|kinds| kinds.iter().any(|own| own == kind)))
    }

    /// Adds the number to a line.
    fn numbered(&self, seq: u64, line: &str) -> String {
        let body = line.trim_end().strip_suffix('}').unwrap_or_default();
        format!("{body},\"id\":\"{}:{seq}\"}}\n", self.core.epoch())
    }

    /// Sends a line of the stream itself.
    fn send(&self, mut line: Value) -> bool {
        line["schema"] = report::json::SCHEMA.into();
        let text = self.numbered(self.at, &line.to_string());
        self.front.stream(self.number, text.into_bytes())
    }

    /// Sends what is the case now, after `lost` where something is missing before it.
    async fn snapshot(&mut self, lost: Option<&str>) -> bool {
        // Whatever comes after this number comes after the snapshot as well.
        self.at = lock(&self.core.events().buffer).seq;
        if let Some(reason) = lost
            && !self.send(json!({"event": "lost", "reason": reason, "complete": false}))
        {
            return false;
        }
        let own: Vec<_> = lock(&self.core.events().watches)
            .values()
            .filter(|watched| watched.account == self.peer.account() || self.peer.is_operator())
            .filter(|watched| self.tree.is_none_or(|tree| tree == watched.root))
            .map(|watched| watched.commands.clone())
            .collect();
        for commands in own {
            let (to, line) = oneshot::channel();
            if commands.send(to).is_ok()
                && let Ok(line) = line.await
            {
                let text = self.numbered(self.at, &self.own_members(&line));
                if !self.front.stream(self.number, text.into_bytes()) {
                    return false;
                }
            }
        }
        self.send(json!({"event": "ready"}))
    }

    /// Leaves out of a snapshot the members that a user does not see, and counts them.
    fn own_members(&self, line: &str) -> String {
        if self.peer.rights.sees != Reach::User {
            return line.to_owned();
        }
        let Ok(mut value) = serde_json::from_str::<Value>(line) else {
            return "{}".to_owned();
        };
        let mut others = 0;
        for list in ["members", "ghosts"] {
            if let Some(members) = value[list].as_array_mut() {
                let all = members.len();
                members.retain(|member| member["uid"] == self.peer.uid);
                others += all - members.len();
            }
        }
        value["others"] = others.into();
        value.to_string()
    }
}

/// Reads `EPOCH:SEQ`.
fn read_after(text: &str) -> Result<(&str, u64), Problem> {
    let read = text.rsplit_once(':');
    let read = read.and_then(|(epoch, seq)| Some((epoch, seq.parse().ok()?)));
    read.ok_or_else(|| Problem::new(Code::InvalidRequest, "after: expected EPOCH:SEQ"))
}

impl Watched {
    fn json(&self, id: &str) -> Value {
        json!({"id": id, "tree": {"pid": self.root.pid, "start_ns": self.root.start_ns}})
    }
}

/// Follows a tree until it is extinct, or nobody wants to know any more.
async fn follow(
    core: &Arc<Core>,
    root: ProcessId,
    account: &Arc<str>,
    mut asked: mpsc::UnboundedReceiver<oneshot::Sender<String>>,
    begun: oneshot::Sender<Result<(), Problem>>,
) {
    let started = Tracker::open_or_load(&LoadOptions::default())
        .and_then(|tracker| Session::start(tracker, root, &WatchOptions::default()));
    let (mut session, start) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = begun.send(Err(error.into()));
            return;
        }
    };
    let is_pinned = session.watcher().tracker().is_pinned();
    let mut printer = Printer::json(root);
    let events = core.events();
    events.push(account, root, &printer.attached(&start, is_pinned));
    let _ = begun.send(Ok(()));
    loop {
        tokio::select! {
            command = asked.recv() => {
                let Some(answer) = command else { return };
                let now = now(&session, &start);
                let _ = answer.send(Printer::json(root).attached(&now, is_pinned));
            }
            updates = session.next() => {
                let Ok(updates) = updates else { return };
                for update in updates {
                    let text = printer.update(&update, session.standing_losses(), None);
                    events.push(account, root, &text);
                    if matches!(update, Update::End) {
                        return;
                    }
                }
            }
        }
    }
}

/// Describes a tree as it is now.
fn now(session: &Session, start: &Start) -> Start {
    let tracker = session.watcher().tracker();
    let members = session.watcher().live_members().unwrap_or_default();
    let mut members: Vec<_> = members
        .into_iter()
        .map(|id| match tracker.record(&id) {
            Ok(Some(record)) => Process::of_record(id, &record),
            _ => Process::unknown(id),
        })
        .collect();
    members.sort_by_key(|member| member.id);
    Start {
        members,
        ghosts: Vec::new(),
        ..start.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(line: &str) -> Kept {
        Kept {
            seq: 0,
            bytes: 0,
            account: "uid 1".into(),
            root: ProcessId::new(7, 7),
            kind: "fork".to_owned(),
            uid: None,
            line: line.into(),
        }
    }

    #[test]
    fn what_is_not_kept_any_more_is_not_passed_over_in_silence() {
        let mut buffer = Buffer::default();
        assert_eq!(buffer.after(0, 10).map(|events| events.len()), Some(0));
        assert!(buffer.after(1, 10).is_none(), "nobody has had it");
        let line = "x".repeat(1 << 20);
        for _ in 0..20 {
            buffer.push(kept(&line));
        }
        assert!(buffer.after(0, u64::MAX).is_none());
        assert_eq!(
            buffer.after(18, u64::MAX).map(|events| events.len()),
            Some(2)
        );
        assert!(buffer.after(18, 1 << 20).is_none(), "too far behind");
        assert_eq!(
            buffer.after(19, 1 << 20).map(|events| events.len()),
            Some(1)
        );
        assert_eq!(buffer.after(20, 0).map(|events| events.len()), Some(0));
        assert!(buffer.held <= REPLAY_BYTES);
    }

    #[test]
    fn a_position_is_read_and_what_is_none_is_refused() {
        assert_eq!(read_after("a-b:17").unwrap(), ("a-b", 17));
        for wrong in ["", "17", "a:", "a:-1", ":x"] {
            assert!(read_after(wrong).is_err(), "{wrong:?} was read");
        }
    }
}

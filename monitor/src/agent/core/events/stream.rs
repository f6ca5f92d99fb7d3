//! A stream of events to one caller, of what it may see, as fast as it reads. Who falls behind gets
//! `lost` and a fresh snapshot, and delays nobody.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::buffer::Kept;
use super::source::Command;
use crate::agent::call::EventsQuery;
use crate::agent::core::fronts::Front;
use crate::agent::core::{Core, lock};
use crate::agent::limits::Good;
use crate::agent::naming::Name;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::rights::Reach;
use crate::agent::view::View;
use crate::{ProcessId, report};

/// Bytes that a stream may be behind.
const BEHIND_BYTES: u64 = 1 << 20;
/// Bytes of a stream that are under way to its front at most.
const FLOW_BYTES: u64 = 256 << 10;
/// The time between two signs of life on a stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The time in which the end of a watch is told that is forgotten already, at most.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// The kinds of events that nobody can leave out.
const ALWAYS: [&str; 3] = ["attached", "lost", "detached"];

/// Streams events to a caller until it goes, or its one watch ends.
pub(in crate::agent::core) async fn stream(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    front: &Arc<Front>,
    number: u64,
    query: EventsQuery,
) -> Result<(), Problem> {
    let _taken = core.limits().take(Good::Stream, &peer.budget())?;
    let tree = match query.tree {
        None => None,
        Some(name) => Some(find(core, peer, name).await?),
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
        watch: query.watch,
        kinds,
        at: lock(&core.events().buffer).seq,
        behind: u64::MAX,
    };
    stream.check_watch()?;
    let after = query.after.as_deref().map(read_after).transpose()?;
    // Ends with the task: whoever forgets the question aborts it.
    let _end = EndOfStream { front, number };
    if !stream.begin(after).await {
        return Ok(());
    }
    let mut last = core.events().last.subscribe();
    loop {
        if stream.has_no_more().await {
            stream.send(json!({"event": "detached", "complete": false}));
            return Ok(());
        }
        match stream.catch_up().await {
            Next::Wait => {}
            Next::Look => continue,
            Next::End => return Ok(()),
        }
        let changed = timeout(HEARTBEAT, last.changed()).await;
        if changed.is_err() && !stream.send(json!({"event": "heartbeat"})) {
            return Ok(());
        }
    }
}

async fn find(core: &Arc<Core>, peer: &Arc<Peer>, name: Name) -> Result<ProcessId, Problem> {
    let caller = Arc::clone(peer);
    let found = core.at_work(peer, move |core| {
        let snapshot = core.snapshot()?;
        View::new(&snapshot, &caller).find(&name, core.handles())
    });
    found.await
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

/// What follows on catching up.
enum Next {
    /// Waiting for more: all that is kept was sent.
    Wait,
    /// Another look: some was lost, and among that the end of the watch can have been.
    Look,
    /// Nothing: nobody listens any more, or the one watch that this is about has ended.
    End,
}

/// A stream to one caller.
struct Stream<'a> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    front: &'a Front,
    number: u64,
    tree: Option<ProcessId>,
    /// The one watch that it is about: it ends with that.
    watch: Option<String>,
    kinds: Option<Vec<String>>,
    /// The last event that it has had.
    at: u64,
    /// Bytes that it may be behind: what is kept, until it has had all that once.
    behind: u64,
}

impl Stream<'_> {
    fn is_own(&self, account: &str) -> bool {
        account == self.peer.account() || self.peer.is_operator()
    }

    /// Checks that the watch that is asked for is there, or was.
    fn check_watch(&self) -> Result<(), Problem> {
        let Some(id) = &self.watch else { return Ok(()) };
        let events = self.core.events();
        let is_own = |account: &str| self.is_own(account);
        if events.has_watch(id, is_own) || lock(&events.buffer).knows(id, is_own) {
            return Ok(());
        }
        let detail = format!("no watch {id} of yours");
        Err(Problem::new(Code::NoSuchWatch, detail))
    }

    /// Begins behind an event, or with a snapshot; returns false where nobody listens any more.
    async fn begin(&mut self, after: Option<(&str, u64)>) -> bool {
        let Some((epoch, seq)) = after else {
            return self.snapshot(None).await;
        };
        if epoch != self.core.epoch() {
            return self.snapshot(Some("restarted")).await;
        }
        if !lock(&self.core.events().buffer).has_all_after(seq) {
            return self.snapshot(Some("overrun")).await;
        }
        self.at = seq;
        self.send(json!({"event": "resumed"}))
    }

    /// Returns whether the one watch that this is about has ended, and its end is not to come.
    async fn has_no_more(&self) -> bool {
        let Some(id) = &self.watch else { return false };
        let events = self.core.events();
        let is_to_come = || {
            let ends = lock(&events.buffer).has_after(self.at, |kept| self.is_end(kept));
            ends || events.has_watch(id, |_| true)
        };
        if is_to_come() {
            return false;
        }
        // A watch is forgotten a moment before its end is told.
        let mut last = events.last.subscribe();
        let to_come = last.wait_for(|_| is_to_come());
        timeout(FORGOTTEN, to_come).await.is_err()
    }

    /// Sends what has come since.
    async fn catch_up(&mut self) -> Next {
        loop {
            self.front.has_room(self.number, FLOW_BYTES).await;
            let events = lock(&self.core.events().buffer).after(self.at, self.behind);
            let Some(events) = events else {
                let is_heard = self.snapshot(Some("slow_reader")).await;
                return if is_heard { Next::Look } else { Next::End };
            };
            let Some(last) = events.last().map(|kept| kept.seq) else {
                self.behind = BEHIND_BYTES;
                return Next::Wait;
            };
            let mut text = String::new();
            let mut is_over = false;
            for kept in &events {
                self.at = kept.seq;
                if self.shows(kept) {
                    let line = self.own_members(&kept.kind, &kept.line);
                    text.push_str(&self.numbered(kept.seq, &line));
                    is_over = self.is_end(kept);
                }
                if is_over || text.len() as u64 > FLOW_BYTES {
                    break;
                }
            }
            let is_heard = text.is_empty() || self.front.stream(self.number, text.into_bytes());
            if !is_heard || is_over {
                return Next::End;
            }
            if self.at == last {
                self.behind = BEHIND_BYTES;
                return Next::Wait;
            }
        }
    }

    /// Returns whether an event ends the one watch that this is about.
    fn is_end(&self, kept: &Kept) -> bool {
        let watch = self.watch.as_ref();
        kept.kind == "detached" && watch.is_some_and(|watch| kept.is_for(watch))
    }

    fn shows(&self, kept: &Kept) -> bool {
        let mut whose = kept.whose.iter();
        let watch = self.watch.as_deref();
        let is_own = whose.any(|whose| {
            self.is_own(&whose.account) && watch.is_none_or(|watch| *whose.watch == *watch)
        });
        let is_foreign = self.sees_its_uid() && kept.uid.is_some_and(|uid| uid != self.peer.uid);
        is_own && !is_foreign && self.wants(kept.root, &kept.kind)
    }

    /// Returns whether the caller sees only processes of its uid.
    fn sees_its_uid(&self) -> bool {
        matches!(self.peer.rights.sees, Reach::User | Reach::Namespaces)
    }

    fn wants(&self, root: ProcessId, kind: &str) -> bool {
        let kinds = self.kinds.as_ref();
        self.tree.is_none_or(|tree| tree == root)
            && (ALWAYS.contains(&kind)
                || kinds.is_none_or(|kinds| kinds.iter().any(|own| own == kind)))
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

    /// Sends what is the case now, after `lost` where something is missing before it; returns false
    /// where nobody listens any more.
    async fn snapshot(&mut self, lost: Option<&str>) -> bool {
        // Whatever comes after this number comes after the snapshot as well.
        self.at = lock(&self.core.events().buffer).seq;
        if let Some(reason) = lost
            && !self.send(json!({"event": "lost", "reason": reason, "complete": false}))
        {
            return false;
        }
        let chosen = self.watch.as_deref();
        let sources = self.core.events().sources(|id, watched| {
            self.is_own(&watched.account)
                && chosen.is_none_or(|chosen| id == chosen)
                && self.tree.is_none_or(|tree| tree == watched.root)
        });
        if chosen.is_some() && sources.is_empty() {
            // It has ended: there is nothing for this to be ready for.
            return true;
        }
        for commands in sources {
            let (to, line) = oneshot::channel();
            if commands.send(Command::Describe(to)).is_ok()
                && let Ok(line) = line.await
            {
                let text = self.numbered(self.at, &self.own_members("attached", &line));
                if !self.front.stream(self.number, text.into_bytes()) {
                    return false;
                }
            }
        }
        self.send(json!({"event": "ready"}))
    }

    /// Leaves out of the line that opens a stream the members that a user does not see, and counts
    /// them.
    fn own_members(&self, kind: &str, line: &str) -> String {
        if kind != "attached" || !self.sees_its_uid() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_and_what_is_none_is_refused() {
        assert_eq!(read_after("a-b:17").unwrap(), ("a-b", 17));
        for wrong in ["", "17", "a:", "a:-1", ":x"] {
            assert!(read_after(wrong).is_err(), "{wrong:?} was read");
        }
    }
}

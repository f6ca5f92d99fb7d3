//! Watches and their events: a source follows each watched tree, for all who watch it ([`source`]);
//! what it tells goes into one buffer ([`buffer`]), from which every stream reads at its own pace
//! ([`stream`]).

mod buffer;
mod source;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ProcessId;

use super::{Connection, Core, lock};
use crate::agent::call::{Answer, WatchRequest};
use crate::agent::limits::{Good, Taken};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::token;
use crate::agent::view::View;
use buffer::{Buffer, Kept, Whose};
use source::{Command, Commands};
pub(super) use stream::stream;

/// The watches, and what they have seen.
#[derive(Default)]
pub(super) struct Events {
    watches: Mutex<HashMap<Arc<str>, Watched>>,
    buffer: Mutex<Buffer>,
    /// The number of the last event, for those who wait.
    last: watch::Sender<u64>,
}

struct Watched {
    account: Arc<str>,
    root: ProcessId,
    /// The connection that it ends with.
    connection: Option<u64>,
    /// Where its source is asked, which ends with the last watch.
    commands: Commands,
    _taken: Taken,
}

fn tree_json(root: ProcessId) -> Value {
    json!({"pid": root.pid, "start_ns": root.start_ns})
}

/// A watch whose source has not begun: ends with the request that makes it.
struct Beginning<'a> {
    events: &'a Events,
    id: Arc<str>,
    has_begun: bool,
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        if !self.has_begun {
            self.events.end(|id, _| **id == *self.id);
        }
    }
}

impl Events {
    /// Begins to watch a tree for a caller.
    pub(super) async fn watch(
        core: &Arc<Core>,
        connection: &Connection,
        request: WatchRequest,
    ) -> Result<Answer, Problem> {
        let peer = &connection.peer;
        let taken = core.limits().take(Good::Tree, &peer.budget())?;
        let caller = Arc::clone(peer);
        let root = core
            .at_work(peer, move |core| {
                let snapshot = core.snapshot()?;
                View::new(&snapshot, &caller).find(&request.process, core.handles())
            })
            .await?;
        let connection = request.on_disconnect.then_some(connection.number);
        let (mut beginning, has_begun) = Self::join(core, peer, root, connection, taken)?;
        let failed = || Problem::new(Code::Internal, "the watch has ended at once");
        let before = has_begun.await.map_err(|_| failed())??;
        beginning.has_begun = true;
        let answer = json!({
            "id": &*beginning.id,
            "tree": tree_json(root),
            "after": format!("{}:{before}", core.epoch()),
        });
        Ok(Answer::object(201, &answer))
    }

    /// Joins a watch to the source of its tree, which is started where there is none.
    fn join<'a>(
        core: &'a Arc<Core>,
        peer: &Peer,
        root: ProcessId,
        connection: Option<u64>,
        taken: Taken,
    ) -> Result<(Beginning<'a>, oneshot::Receiver<Result<u64, Problem>>), Problem> {
        let (id, account) = (
            Arc::<str>::from(token::new()),
            Arc::<str>::from(peer.account()),
        );
        let events = core.events();
        let mut all = lock(&events.watches);
        // Under one lock with the entry: a source that is found here has a watch, and does not end
        // before it has this one as well.
        let source = all.values().find(|watched| watched.root == root);
        let commands = match source.map(|watched| watched.commands.clone()) {
            Some(commands) => commands,
            None => source::start(core, root, core.limits().take(Good::Slot, &peer.budget())?)?,
        };
        let whose = Whose {
            watch: Arc::clone(&id),
            account: Arc::clone(&account),
        };
        let (begun, has_begun) = oneshot::channel();
        let _ = commands.send(Command::Join { whose, begun });
        let watched = Watched {
            account,
            root,
            connection,
            commands,
            _taken: taken,
        };
        all.insert(Arc::clone(&id), watched);
        let beginning = Beginning {
            events,
            id,
            has_begun: false,
        };
        Ok((beginning, has_begun))
    }

    /// Lists the watches of a caller's account.
    pub(super) fn list(&self, peer: &Peer) -> Answer {
        let watches = lock(&self.watches);
        let own = watches.iter();
        let own =
            own.filter(|(_, watched)| *watched.account == *peer.account() || peer.is_operator());
        let own: Vec<_> = own
            .map(|(id, watched)| json!({"id": &**id, "tree": tree_json(watched.root)}))
            .collect();
        Answer::object(200, &json!({"watches": own}))
    }

    /// Ends a watch.
    pub(super) fn unwatch(&self, peer: &Peer, id: &str) -> Result<Answer, Problem> {
        let is_own = |account: &str| account == peer.account() || peer.is_operator();
        if !self.has_watch(id, is_own) {
            return Err(Problem::new(
                Code::NoSuchWatch,
                format!("no watch {id} of yours"),
            ));
        }
        self.end(|watch, _| **watch == *id);
        Ok(Answer::object(200, &json!({"id": id, "state": "ended"})))
    }

    /// Ends the watches that are to end with a connection.
    pub(super) fn disconnected(&self, connection: u64) {
        self.end(|_, watched| watched.connection == Some(connection));
    }

    fn end(&self, is_meant: impl Fn(&Arc<str>, &Watched) -> bool) {
        let mut watches = lock(&self.watches);
        for (id, watched) in watches.extract_if(|id, watched| is_meant(id, watched)) {
            let _ = watched.commands.send(Command::Leave { watch: id });
        }
    }

    /// Forgets the watches of a source that ends.
    fn forget(&self, source: &mpsc::WeakUnboundedSender<Command>) {
        // Nobody has it any more: it ends because of that.
        let Some(source) = source.upgrade() else {
            return;
        };
        lock(&self.watches).retain(|_, watched| !watched.commands.same_channel(&source));
    }

    fn has_watch(&self, id: &str, is_own: impl Fn(&str) -> bool) -> bool {
        let all = lock(&self.watches);
        let found = all.get(id);
        found.is_some_and(|watched| is_own(&watched.account))
    }

    /// Returns where the sources of these watches are asked, each once.
    fn sources(&self, is_meant: impl Fn(&str, &Watched) -> bool) -> Vec<Commands> {
        let mut sources: Vec<Commands> = Vec::new();
        for (id, watched) in lock(&self.watches).iter() {
            let is_new = |source: &Commands| !source.same_channel(&watched.commands);
            if is_meant(id, watched) && sources.iter().all(is_new) {
                sources.push(watched.commands.clone());
            }
        }
        sources
    }

    /// Keeps lines for these watches; returns the number of the last event before.
    fn push(&self, whose: &Arc<[Whose]>, root: ProcessId, text: &str) -> u64 {
        let mut buffer = lock(&self.buffer);
        let before = buffer.seq;
        for line in text.lines() {
            if let Some(kept) = Kept::of_line(whose, root, line) {
                buffer.push(kept);
            }
        }
        let last = buffer.seq;
        drop(buffer);
        self.last.send_replace(last);
        before
    }
}

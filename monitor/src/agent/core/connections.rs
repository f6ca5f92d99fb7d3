//! The connections: who is let in, which front has each, and how they end.
//!
//! A connection is known here by a descriptor of its own, so that its end is seen without the
//! front's word, and a front that ends takes no connection for closed that the caller has not
//! closed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use crate::sys::poll::closable;

use super::fronts::Front;
use super::guards::{self, Guards};
use super::{Core, lock};
use crate::agent::limits::{Good, Taken};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};

/// The time for a refused caller to read why.
const REFUSAL: Duration = Duration::from_secs(1);

/// An open connection.
pub(in crate::agent) struct Connection {
    /// Its number, never used again.
    pub(in crate::agent) number: u64,
    /// Who is at the other end.
    pub(in crate::agent) peer: Arc<Peer>,
    /// The front that has it, by its generation.
    front: u64,
    socket: AsyncFd<OwnedFd>,
    /// What is asked in its name, with the tasks that answer.
    pub(super) asks: Mutex<HashMap<u64, Option<AbortHandle>>>,
    _taken: Taken,
}

impl Core {
    /// Takes a connection that was accepted: finds out who it is, and passes it to a front.
    pub(in crate::agent) fn accept(self: &Arc<Self>, socket: UnixStream) {
        let admitted = Peer::of(&socket, &self.host)
            .map_err(|error| Problem::new(Code::PeerGone, error.to_string()))
            .and_then(|peer| {
                let taken = self.limits.take(Good::Connection, &peer.budget())?;
                Ok((peer, taken))
            });
        match admitted {
            Ok((peer, taken)) => {
                if let Err(error) = self.pass_on(socket, peer, taken) {
                    log::warn!("a connection could not be passed on: {error}");
                }
            }
            Err(problem) => {
                self.audit
                    .write("refused", None, json!({"code": problem.code}));
                tokio::spawn(refuse(socket, problem));
            }
        }
    }

    fn pass_on(self: &Arc<Self>, socket: UnixStream, peer: Peer, taken: Taken) -> io::Result<()> {
        let socket = OwnedFd::from(socket.into_std()?);
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let front = self.fronts.of(&peer)?;
        let connection = Arc::new(Connection {
            number,
            peer: Arc::new(peer),
            front: front.generation(),
            socket: closable(socket)?,
            asks: Mutex::default(),
            _taken: taken,
        });
        lock(&self.connections).insert(number, Arc::clone(&connection));
        if let Err(error) = front.take(number, connection.socket.get_ref().as_fd()) {
            lock(&self.connections).remove(&number);
            return Err(error);
        }
        let core = Arc::clone(self);
        tokio::spawn(async move {
            connection.closed().await;
            core.end(&connection, true);
        });
        Ok(())
    }

    /// Takes a connection of the second socket.
    pub(in crate::agent) fn accept_handle(self: &Arc<Self>, socket: UnixStream) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(peer) = Peer::of(&socket, &core.host) else {
                return;
            };
            if let Ok(_taken) = core.limits.take(Good::Connection, &peer.budget()) {
                let _ = core.handles.serve(socket, &peer).await;
            }
        });
    }

    /// Ends a connection. `by_caller` where the caller has closed it.
    pub(super) fn end(self: &Arc<Self>, connection: &Arc<Connection>, by_caller: bool) {
        if lock(&self.connections).remove(&connection.number).is_none() {
            return;
        }
        let asks = std::mem::take(&mut *lock(&connection.asks));
        for abort in asks.into_values().flatten() {
            abort.abort();
        }
        let _ = rustix::net::shutdown(connection.socket.get_ref(), rustix::net::Shutdown::Both);
        self.events.disconnected(connection.number);
        Guards::disconnected(self, connection.number, by_caller);
        guards::attend(self);
        self.trim.note();
    }

    /// Ends the connections of a front that has ended. The callers have not closed them.
    pub(in crate::agent) fn front_ended(self: &Arc<Self>, generation: u64) {
        let connections: Vec<_> = lock(&self.connections)
            .values()
            .filter(|connection| connection.front == generation)
            .cloned()
            .collect();
        for connection in connections {
            let by_caller = connection.is_closed();
            self.end(&connection, by_caller);
        }
    }

    /// Returns whether a connection is open.
    pub(in crate::agent) fn is_open(&self, number: u64) -> bool {
        lock(&self.connections).contains_key(&number)
    }

    pub(super) fn connections_of(&self, front: &Front) -> Vec<Arc<Connection>> {
        let connections = lock(&self.connections);
        let own = connections
            .values()
            .filter(|connection| connection.front == front.generation());
        own.cloned().collect()
    }

    /// Returns a connection that this front was given; others it cannot name.
    pub(super) fn connection(&self, front: &Front, number: u64) -> Option<Arc<Connection>> {
        let connections = lock(&self.connections);
        let connection = connections.get(&number)?;
        (connection.front == front.generation()).then(|| Arc::clone(connection))
    }
}

impl Connection {
    /// Waits until the caller has closed it.
    async fn closed(&self) {
        loop {
            let Ok(mut ready) = self.socket.ready(Interest::PRIORITY).await else {
                return;
            };
            if self.is_closed() {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Returns whether the caller has closed it: nothing comes any more, and nothing is read.
    pub(super) fn is_closed(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut sources = [PollFd::new(
            self.socket.get_ref().as_fd(),
            PollFlags::empty(),
        )];
        let polled = poll(&mut sources, PollTimeout::ZERO);
        let events = sources[0].revents().unwrap_or(PollFlags::empty());
        polled.is_err() || events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
    }
}

/// Tells a caller why it is not let in.
async fn refuse(mut socket: UnixStream, problem: Problem) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let body = problem.to_json();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        problem.status,
        problem.title,
        body.len()
    );
    let talk = async {
        socket.write_all((head + &body).as_bytes()).await?;
        socket.shutdown().await?;
        // What is not read when it is closed lets the caller lose the answer.
        let mut rest = [0; 4096];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSAL, talk).await;
}

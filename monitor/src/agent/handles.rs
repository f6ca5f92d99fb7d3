//! The second socket: a caller sends a pidfd and gets a token, which names that process in the
//! requests of the same caller. A pidfd names a process from any namespace.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ProcessId;
use crate::proc;
use crate::sys::pidfd;

use super::peer::Peer;
use super::problem::{Code, Problem};
use super::token;
use super::wire;

/// Handles of one user at most; the oldest goes.
const HANDLES_MAX: usize = 64;
/// Handles of all at most.
const ALL_HANDLES_MAX: usize = 4_096;
/// The time for a descriptor to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The processes that were handed over.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    handles: HashMap<String, Handle>,
}

#[derive(Debug)]
struct Handle {
    order: u64,
    budget: String,
    /// The caller that has handed it over.
    caller: ProcessId,
    process: ProcessId,
    /// Keeps the pid from being anybody else's for as long as the process is not reaped.
    pidfd: OwnedFd,
}

impl Handles {
    /// Returns the process that a token of this caller names.
    pub(super) fn find(&self, token: &str, peer: &Peer) -> Option<ProcessId> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = inner.handles.get(token)?;
        (handle.caller == peer.process && peer.is_there()).then_some(handle.process)
    }

    /// Receives a pidfd on a connection of the second socket, and answers with its token.
    pub(super) async fn serve(&self, mut socket: UnixStream, peer: &Peer) -> io::Result<()> {
        let received = timeout(ARRIVAL, receive(&socket)).await;
        let answer = match received {
            Ok(Ok(pidfd)) => self.add(pidfd, peer),
            Ok(Err(error)) => Err(Problem::new(Code::InvalidRequest, error.to_string())),
            Err(_) => Err(Problem::new(Code::RequestTimeout, "no descriptor has come")),
        };
        let text = answer.unwrap_or_else(|problem| problem.to_json());
        timeout(ARRIVAL, socket.write_all(text.as_bytes())).await?
    }

    fn add(&self, pidfd: OwnedFd, peer: &Peer) -> Result<String, Problem> {
        let no_pidfd = || {
            let detail = "send the pidfd of a living process, one, by SCM_RIGHTS with a byte";
            Problem::new(Code::InvalidRequest, detail)
        };
        let pid = proc::pid_of_pidfd(pidfd.as_fd()).ok_or_else(no_pidfd)?;
        let process = proc::identify(pid).ok_or_else(no_pidfd)?;
        // A pidfd can be of a thread: the identity is that of a process or of nobody.
        if !matches!(pidfd::is_gone(&pidfd), Ok(false)) {
            return Err(no_pidfd());
        }
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = peer.budget();
        inner.make_room(&budget);
        let token = token::new();
        inner.next += 1;
        let handle = Handle {
            order: inner.next,
            budget,
            caller: peer.process,
            process,
            pidfd,
        };
        inner.handles.insert(token.clone(), handle);
        Ok(json!({"handle": token}).to_string() + "\n")
    }
}

impl Inner {
    /// Removes the handles of the gone, and the oldest ones where there are too many.
    fn make_room(&mut self, budget: &str) {
        if self.handles.len() >= ALL_HANDLES_MAX {
            self.handles
                .retain(|_, handle| matches!(pidfd::is_gone(&handle.pidfd), Ok(false)));
        }
        let own: Vec<_> = self
            .handles
            .iter()
            .filter(|(_, handle)| handle.budget == budget)
            .map(|(token, handle)| (handle.order, token.clone()))
            .collect();
        let everybody_is_full = self.handles.len() >= ALL_HANDLES_MAX;
        if own.len() >= HANDLES_MAX {
            let oldest = own.into_iter().min();
            oldest.and_then(|(_, token)| self.handles.remove(&token));
        } else if everybody_is_full {
            let all = self.handles.iter();
            let oldest = all
                .map(|(token, handle)| (handle.order, token.clone()))
                .min();
            oldest.and_then(|(_, token)| self.handles.remove(&token));
        }
    }
}

async fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut bytes = [0; 16];
    loop {
        socket.readable().await?;
        let received = socket.try_io(tokio::io::Interest::READABLE, || {
            wire::receive_descriptor(socket.as_fd(), &mut bytes)
        });
        match received {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, Some(descriptor))) => return Ok(descriptor),
            Ok((_, None)) => return Err(io::Error::other("no descriptor came with the bytes")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

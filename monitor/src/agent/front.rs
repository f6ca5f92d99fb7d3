//! The front: a process without capabilities that parses HTTP. It gets connections from the core,
//! each with a number, asks the core in the name of that number, and passes the answers on. What a
//! caller may, it neither knows nor decides: whoever takes it over can ask what its callers could
//! have asked, and nothing else.

mod connection;
#[cfg(test)]
mod fuzz;
mod link;
mod pace;
mod read;
mod respond;
pub(super) mod routes;

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;

use crate::sys::poll::readable;
use crate::sys::runtime::current_thread;
use crate::sys::{child, privilege, sandbox};

use super::wire;
use link::Link;

/// The hidden command that runs [`run`].
pub(crate) const COMMAND: &str = "agent-front";

/// The user that it runs as: the one that owns nothing.
const NOBODY: u32 = 65_534;

/// Serves the connections that come over `connections`, and asks over `calls`, until the core
/// ends. Both were inherited.
///
/// # Errors
/// When this process cannot give up its privileges, or the descriptors are no sockets.
pub(crate) fn run(parent: u32, calls: RawFd, connections: RawFd) -> io::Result<()> {
    // SAFETY: the core has opened both for this process, and nobody else here knows of them.
    let (calls, connections) = unsafe {
        (
            OwnedFd::from_raw_fd(calls),
            OwnedFd::from_raw_fd(connections),
        )
    };
    child::set_name(c"lifemon-front");
    // Away from the terminal of whoever has started the agent.
    let _ = nix::unistd::setsid();
    privilege::give_up(NOBODY, NOBODY)?;
    child::die_with(parent)?;
    let calls = StdStream::from(calls);
    calls.set_nonblocking(true)?;
    let runtime = current_thread()?;
    // The runtime has its descriptors by now, and nothing has been read from anybody.
    sandbox::enter()?;
    runtime.block_on(serve(calls, connections))
}

async fn serve(calls: StdStream, connections: OwnedFd) -> io::Result<()> {
    let (from, to) = tokio::net::UnixStream::from_std(calls)?.into_split();
    let link = Link::start(to);
    let router = routes::router();
    let connections = readable(connections)?;
    let accepting = async {
        loop {
            let mut ready = connections.readable().await?;
            let mut number = [0; 8];
            let received =
                ready.try_io(|socket| wire::receive_descriptor(socket.get_ref(), &mut number));
            let Ok(received) = received else { continue };
            match received? {
                (0, _) => return Ok(()),
                (8, Some(socket)) => {
                    let number = u64::from_le_bytes(number);
                    connection::start(number, socket, link.clone(), router.clone());
                }
                _ => return Err(io::Error::other("the core sent no connection")),
            }
        }
    };
    tokio::select! {
        ended = accepting => ended,
        ended = link.listen(from) => ended,
        () = link.trims() => Ok(()),
    }
}

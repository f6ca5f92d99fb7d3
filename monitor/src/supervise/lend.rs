//! What the guardian of a command lends to servers below it: a helper of their own, which knows the
//! trees of their workers and ends them ([`crate::manager`]).
//!
//! A server finds the guardian by its own ancestors, and asks at a socket whose name says which
//! guardian it is: `lifemon-run/INODE/PID`, its pid namespace and its pid in that, in the abstract
//! namespace. So the command runs as it does alone: no descriptor and no variable is added. Who
//! asks checks by the kernel's word that the guardian has answered; where the name is taken,
//! nothing is lent.
//!
//! A helper is for a process of the guardian's own user below the guardian, and for nobody else. It
//! is a child of the guardian and not of the command; before anything is ended, those whose server
//! is dead have ended what is theirs, and the others are gone.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::kill::is_below;
use crate::manager::{Asker, serve_lent};
use crate::proc;
use crate::sys::child;
use crate::sys::descriptor::close_all_but;
use crate::sys::signals::send_to_child;
use crate::sys::{peer, pidfd};

/// Helpers at the same time.
const HELPERS_MAX: usize = 8;

/// The time that helpers may take to end what dead servers have left.
const LIMIT: Duration = Duration::from_secs(12);

/// Pause between two looks whether they may take longer.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// The helpers that are lent.
#[derive(Debug, Default)]
pub(super) struct Lending {
    listener: Option<UnixListener>,
    helpers: Vec<u32>,
    dismissed: Option<Instant>,
}

impl Lending {
    /// Begins to lend. Where that cannot be, nobody is served.
    pub(super) fn begin() -> Self {
        let listener = listen().inspect_err(|error| log::info!("no helper is lent: {error}"));
        Self {
            listener: listener.ok(),
            ..Self::default()
        }
    }

    /// Returns the descriptor that is readable when somebody asks.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(UnixListener::as_fd)
    }

    /// Serves one who asks. Each gets its helper, or the end of the connection.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if is_passing(&error) => return,
            // Asked again at once, it would fail again.
            Err(_) => return drop(self.listener.take()),
        };
        if self.helpers.len() < HELPERS_MAX
            && let Some(asker) = asker(&socket)
            && let Ok(helper) = start(socket, asker)
        {
            self.helpers.push(helper);
        }
    }

    /// Notes that a child was reaped; returns whether it was a helper.
    pub(super) fn reaped(&mut self, pid: u32) -> bool {
        let before = self.helpers.len();
        self.helpers.retain(|helper| *helper != pid);
        self.helpers.len() < before
    }

    /// Lends no more, and lets the helpers finish.
    pub(super) fn dismiss(&mut self) {
        self.listener = None;
        self.dismissed.get_or_insert_with(Instant::now);
        self.signal(libc::SIGTERM);
    }

    /// Ends the helpers at once.
    pub(super) fn hurry(&mut self) {
        self.listener = None;
        self.signal(libc::SIGKILL);
    }

    /// Returns whether none is left. Those that take too long are ended.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.dismissed.is_some_and(|since| since.elapsed() > LIMIT) {
            self.hurry();
        }
        self.helpers.is_empty()
    }

    fn signal(&self, signal: i32) {
        for helper in &self.helpers {
            // An unreaped child: its pid is its own.
            let _ = send_to_child(*helper, signal, false);
        }
    }
}

fn listen() -> io::Result<UnixListener> {
    let own = std::process::id();
    let hidden = || io::Error::other("/proc does not show the pid namespace");
    let namespace = proc::pid_namespace(own).ok_or_else(hidden)?;
    let name = format!("lifemon-run/{namespace}/{own}");
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// Returns who has connected, if it is served. Its descriptor is read last: it is alive then, so
/// what was read of its pid is of it. Kernels before 6.5 give none with the socket; then it can be
/// that of an heir of its pid, which is served only if that is below as well.
fn asker(socket: &UnixStream) -> Option<Asker> {
    let peer = peer::credentials(socket).ok()?;
    if peer.uid != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let pidfd = match peer::pidfd(socket).ok()? {
        Some(pidfd) => pidfd,
        None => pidfd::open(peer.pid).ok()?,
    };
    let is_served = is_below(std::process::id(), peer.pid) && !pidfd::is_gone(&pidfd).ok()?;
    is_served.then_some(Asker {
        pid: peer.pid,
        pidfd,
    })
}

/// Starts a helper; returns its pid. For a process with one thread and all signals blocked.
fn start(socket: UnixStream, asker: Asker) -> io::Result<u32> {
    let guardian = std::process::id();
    if let Some(pid) = child::fork()? {
        return Ok(pid);
    }
    let socket = OwnedFd::from(socket);
    close_all_but([&socket, &asker.pidfd]);
    let result = serve_lent(socket.into(), asker, guardian);
    child::exit(i32::from(result.is_err()))
}

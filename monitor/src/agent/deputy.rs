//! The deputy: a process with exactly the user of a caller and no capability, which sends the
//! signals of a kill that this caller has asked for. The kernel decides about each as if the caller
//! had sent it. It gets descriptors of processes, never pids.
//!
//! The caller can signal it, because it has the caller's uid: whoever stops or kills it has stopped
//! the own kill. It cannot look into it: a process that has changed its user is not dumpable.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ProcessId;
use crate::kill::envoy::Envoy;
use crate::proc::OWN_PROGRAM;
use crate::sys::child::{self, BeforeExec};
use crate::sys::{pidfd, privilege};

use super::peer::Scope;
use super::wire;

/// The hidden command that runs [`run`].
pub(crate) const COMMAND: &str = "agent-deputy";

/// The time for one signal: whoever needs longer was stopped.
const ANSWER: Duration = Duration::from_secs(2);

/// A deputy at work. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Deputy {
    /// `None` once it has not answered in time: what it says later would be of another signal.
    socket: Mutex<Option<UnixStream>>,
    child: Child,
    scope: Scope,
}

impl Deputy {
    /// Starts one for a scope, with these ids.
    ///
    /// # Errors
    /// When no process can be started, or it does not get its rights.
    pub(super) fn start(scope: Scope, uid: u32, gid: u32) -> io::Result<Self> {
        let (own, its) = UnixStream::pair()?;
        let mut command = Command::new(OWN_PROGRAM);
        command
            .args([COMMAND, &uid.to_string(), &gid.to_string()])
            .arg(its.as_raw_fd().to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let prepared = BeforeExec {
            keeps: vec![its.as_raw_fd()],
            ..BeforeExec::default()
        };
        prepared.set(&mut command);
        let child = command.spawn()?;
        drop(its);
        own.set_read_timeout(Some(ANSWER))?;
        own.set_write_timeout(Some(ANSWER))?;
        let deputy = Self {
            socket: Mutex::new(Some(own)),
            child,
            scope,
        };
        // It says when it is what it is to be.
        deputy.talk(|_| Ok(()))?;
        Ok(deputy)
    }

    /// Says something to it, and waits for its answer.
    fn talk(&self, say: impl FnOnce(&UnixStream) -> io::Result<()>) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || io::Error::other("the process that sends your signals does not answer");
        let mut errno = [0; 4];
        let open = socket.as_mut().ok_or_else(gone)?;
        if say(open)
            .and_then(|()| open.read_exact(&mut errno))
            .is_err()
        {
            *socket = None;
            return Err(gone());
        }
        match i32::from_le_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Envoy for Deputy {
    fn send(&self, id: ProcessId, pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
        if !self.scope.bounds(id.pid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let signal = u64::from(signal.cast_unsigned());
        self.talk(|socket| wire::send_descriptor(socket, signal, pidfd.as_fd()))
    }

    fn uid(&self) -> Option<u32> {
        self.scope.uid_of_ghosts()
    }
}

impl Drop for Deputy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends what comes over `socket`, which was inherited, as this user.
///
/// # Errors
/// When the privileges cannot be given up, or the socket fails.
pub(crate) fn run(uid: u32, gid: u32, socket: RawFd) -> io::Result<()> {
    // SAFETY: the core has opened it for this process, and nobody else here knows of it.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    child::set_name(c"lifemon-deputy");
    privilege::give_up(uid, gid)?;
    socket.write_all(&[0; 4])?;
    loop {
        let mut signal = [0; 8];
        let (length, descriptor) = wire::receive_descriptor(&socket, &mut signal)?;
        let (8, Some(target)) = (length, descriptor) else {
            return Ok(());
        };
        let signal = u64::from_le_bytes(signal);
        let sent = i32::try_from(signal)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
            .and_then(|signal| pidfd::send_signal(&target, signal));
        let errno = sent
            .err()
            .map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        socket.write_all(&errno.to_le_bytes())?;
    }
}

//! The start of the command of `lifemon run`: a child of the guardian that waits in the process
//! group of the owner until the guardian has left it, and becomes the command then. So no signal to
//! the group ends all of them after the command has begun, and none is lost meanwhile.

use std::ffi::{CString, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;

use super::spawn::{Group, Place};
use crate::sys::child::{self, BeforeExec, become_program};
use crate::sys::signals::{SignalSet, catch_up};

/// A command that is about to be executed.
#[derive(Debug)]
pub(super) struct Launch {
    /// The pid that the command will have: an unreaped child.
    pub(super) pid: u32,
    channel: UnixStream,
}

impl Launch {
    /// Makes the process that will be the command. It has all signals blocked, and waits.
    pub(super) fn begin(words: &[OsString], place: Place) -> io::Result<Self> {
        let (ours, its) = UnixStream::pair()?;
        let guardian = std::process::id();
        if let Some(pid) = child::fork()? {
            return Ok(Self { pid, channel: ours });
        }
        drop(ours);
        let error = become_command(words, place, guardian, &its);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = (&its).write_all(&errno.to_ne_bytes());
        child::exit(127)
    }

    /// Lets it become the command. What its group has heard it gets as well.
    pub(super) fn go(&mut self, heard: SignalSet) {
        // One that is dead needs nothing.
        let _ = self.channel.write_all(&heard.to_bytes());
    }

    /// Returns the descriptor that is readable once it is the command, or cannot be.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Waits until it is the command.
    ///
    /// # Errors
    /// The reason why it cannot be; it is reaped then.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let mut errno = [0; 4];
        if self.channel.read_exact(&mut errno).is_err() {
            return Ok(());
        }
        child::wait_for_end(self.pid);
        Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}

/// Becomes the command when it may; returns why not.
fn become_command(
    words: &[OsString],
    place: Place,
    guardian: u32,
    mut channel: &UnixStream,
) -> io::Error {
    let mut heard = [0; 8];
    if let Err(error) = channel.read_exact(&mut heard) {
        return error;
    }
    let words: Result<Vec<_>, _> = words
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect();
    let words = match words {
        Ok(words) => words,
        Err(error) => return error.into(),
    };
    catch_up(SignalSet::from_bytes(heard));
    let prepared = BeforeExec {
        dies_with: Some(guardian),
        group: (place.group != Group::Shared).then_some(0),
        takes_terminal: place.group == Group::Foreground,
        keeps: Vec::new(),
        signals: Some(place.before),
        closes_streams: true,
    };
    match prepared.run() {
        Ok(()) => become_program(&words),
        Err(error) => error,
    }
}

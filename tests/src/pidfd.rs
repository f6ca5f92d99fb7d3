//! A handle on one process that cannot become another's: to signal it, and to learn when it is
//! gone. The only way by which the tests signal anything that is not their own child.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::{Process, proc};

/// An open pidfd.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the process that has this pid now; `None` when nobody has.
    #[must_use]
    pub fn open(pid: i32) -> Option<Self> {
        // SAFETY: takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: a descriptor that was just made for us and that nobody else owns.
        Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Opens exactly this process.
    ///
    /// # Panics
    /// When it is no longer there.
    #[must_use]
    #[track_caller]
    pub fn of(process: Process) -> Self {
        let opened = Self::open(process.pid);
        // Looked at after the opening: if the number is still its own now, so is the handle.
        let is_same =
            proc::stat(process.pid).is_some_and(|stat| stat.start_ticks == process.start_ticks);
        opened
            .filter(|_| is_same)
            .unwrap_or_else(|| panic!("{process:?} is not there"))
    }

    /// Sends as `kill(2)` would: with the sender's pid.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the descriptor is open for the length of the call, the siginfo is absent.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends SIGKILL.
    ///
    /// # Panics
    /// When the process has ended already.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL).expect("it lives");
    }

    /// Waits until the process is gone: its memory released, its children reparented.
    ///
    /// # Panics
    /// When it is not within the deadline.
    #[track_caller]
    pub fn wait_gone(&self, deadline: Duration) {
        let mut sources = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(deadline).expect("a deadline that poll can take");
        assert_eq!(
            poll(&mut sources, timeout),
            Ok(1),
            "not gone in {deadline:?}"
        );
    }
}

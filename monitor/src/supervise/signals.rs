//! Signals as descriptors: all of them blocked, read one by one. Raw system calls, because libc
//! keeps two real-time signals for itself, and those are forwarded as well.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

/// Signals of one look at the descriptor; more stay for the next.
const BATCH: usize = 32;

/// The highest signal number.
pub(crate) const LAST: i32 = 64;

/// Which signals are blocked, as the kernel has it: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u64);

impl Mask {
    /// Every signal that can be blocked.
    pub(crate) const ALL: Self = Self(u64::MAX);

    /// This mask without one signal.
    pub(crate) const fn without(self, signal: i32) -> Self {
        Self(self.0 & !(1 << (signal - 1)))
    }

    /// Makes it the mask of this thread; the mask before. Safe between fork and exec.
    pub(crate) fn set(self) -> io::Result<Self> {
        let mut before = 0_u64;
        // SAFETY: both sets live until the call returns and have the size that is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.0,
                &raw mut before,
                SET_BYTES,
            )
        };
        check(result).map(|_| Self(before))
    }
}

/// What a command is to find as the user's process had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Before {
    mask: Mask,
    /// Whether SIGCHLD was ignored.
    ignores_children: bool,
}

impl Before {
    /// Makes it so again. Safe between fork and exec.
    pub(crate) fn restore(self) -> io::Result<()> {
        if self.ignores_children {
            ignore_children(true)?;
        }
        self.mask.set().map(drop)
    }
}

/// Whether dead children are forgotten at once; whether they were. Who ignores SIGCHLD, which is
/// inherited, is never told of a death, and the pids of its children are free before it has looked.
fn ignore_children(ignore: bool) -> io::Result<bool> {
    let handler = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed.
    let before = unsafe { libc::signal(libc::SIGCHLD, handler) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(before == libc::SIG_IGN)
}

/// One signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Its number.
    pub(crate) number: i32,
    /// Whether the kernel sent it: the terminal, for example.
    pub(crate) by_kernel: bool,
}

/// Reads the blocked signals of this process.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks all signals of this thread, and sees to it that dead children wait to be reaped; how to
    /// read the signals, and what was before.
    pub(crate) fn block() -> io::Result<(Self, Before)> {
        let before = Before {
            mask: Mask::ALL.set()?,
            ignores_children: ignore_children(false)?,
        };
        Ok((Self::open()?, before))
    }

    /// A descriptor for this process: what a parent opened reads the parent's signals.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let all = Mask::ALL.0;
        // SAFETY: the set lives until the call returns and has the size that is given.
        let result =
            unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const all, SET_BYTES, flags) };
        let fd = check(result)?;
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The descriptor, to wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What has come since the last look.
    pub(crate) fn read(&self) -> io::Result<Vec<Signal>> {
        let mut found = Vec::new();
        loop {
            // SAFETY: integers only; all zero is valid.
            let mut batch: [libc::signalfd_siginfo; BATCH] = unsafe { std::mem::zeroed() };
            let size = size_of_val(&batch);
            // SAFETY: the buffer has the size that is given.
            let read = unsafe { libc::read(self.0.as_raw_fd(), batch.as_mut_ptr().cast(), size) };
            let bytes = match check(read as libc::c_long) {
                Ok(bytes) => usize::try_from(bytes).unwrap_or(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(found),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let count = bytes / size_of::<libc::signalfd_siginfo>();
            found.extend(batch[..count].iter().map(|info| Signal {
                number: info.ssi_signo.cast_signed(),
                by_kernel: info.ssi_code == libc::SI_KERNEL,
            }));
        }
    }
}

/// Waits until one of the descriptors is readable or closed, or the time is over; which are.
pub(crate) fn wait_for<const N: usize>(
    sources: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let present = sources.iter().flatten();
    let mut fds: Vec<_> = present
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([false; N]),
        Err(errno) => return Err(errno.into()),
    }
    let mut fds = fds.iter();
    Ok(sources.map(|source| {
        let fd = source.and_then(|_| fds.next());
        fd.is_some_and(|fd| fd.any() == Some(true))
    }))
}

/// Whether a supervisor hands this signal on. SIGKILL and SIGSTOP cannot be seen, SIGCHLD is about
/// its own children.
pub(crate) fn is_forwarded(signal: i32) -> bool {
    (1..=LAST).contains(&signal) && !matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGCHLD)
}

/// Stops this process as `signal` would. Returns when it goes on; whether it was stopped at all,
/// which the kernel does not do where nobody could continue it.
pub(crate) fn stop_self(signal: i32, mask: Mask) -> bool {
    // SAFETY: no memory is passed; the disposition is the default one.
    unsafe { libc::raise(signal) };
    // It stops here.
    let _ = mask.without(signal).set();
    let _ = mask.set();
    is_pending(libc::SIGCONT)
}

fn is_pending(signal: i32) -> bool {
    let mut pending = 0_u64;
    // SAFETY: the set lives until the call returns and has the size that is given.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, SET_BYTES) };
    result == 0 && pending >> (signal - 1) & 1 == 1
}

/// The error of a system call that returned -1.
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_forwarded() {
        let kept: Vec<_> = (1..=LAST).filter(|signal| !is_forwarded(*signal)).collect();
        assert_eq!(kept, [libc::SIGKILL, libc::SIGCHLD, libc::SIGSTOP]);
        assert!(!is_forwarded(0) && !is_forwarded(65));
    }

    #[test]
    fn a_mask_is_made_of_bits() {
        assert_eq!(Mask::ALL.without(1), Mask(u64::MAX - 1));
        assert_eq!(Mask(1 << 63).without(64), Mask(0));
    }
}

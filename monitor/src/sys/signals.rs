//! Signals as a descriptor: all of them blocked, read one by one; and signals to children. Raw
//! system calls, because libc keeps two real-time signals for itself, and those are forwarded as
//! well.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::process::{Pid, getpgid};

use super::check;

/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

/// Signals of one look at the descriptor; more stay for the next.
const BATCH: usize = 32;

/// Bytes of what a descriptor tells of one signal.
const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// The highest signal number.
pub(crate) const LAST: i32 = 64;

/// Blocked signals, as the kernel has them: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u64);

impl Mask {
    /// Every signal that can be blocked.
    pub(crate) const ALL: Self = Self(u64::MAX);

    /// Returns this mask without one signal.
    pub(crate) const fn without(self, signal: i32) -> Self {
        Self(self.0 & !(1 << (signal - 1)))
    }

    /// Makes it the mask of this thread; returns the mask before. Safe between fork and exec.
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

/// The mask and the ignored signals that a command is to find as the process of the user had them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Before {
    mask: Mask,
    /// True if SIGCHLD was ignored.
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

/// Lets the kernel reap dead children by itself, or not; returns whether it did. A process that
/// ignores SIGCHLD, which is inherited, gets no status, and the pids of its children are free
/// before it has looked.
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
    /// True if the kernel sent it: the terminal, for example.
    pub(crate) by_kernel: bool,
}

impl Signal {
    /// Reads what a descriptor tells of one signal.
    fn parse(info: &[u8]) -> Self {
        let number = |at: usize| i32::from_ne_bytes(std::array::from_fn(|byte| info[at + byte]));
        Self {
            number: number(offset_of!(libc::signalfd_siginfo, ssi_signo)),
            by_kernel: number(offset_of!(libc::signalfd_siginfo, ssi_code)) == libc::SI_KERNEL,
        }
    }
}

/// Reads the blocked signals of this process.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks all signals of this thread, and makes dead children wait to be reaped; returns how to
    /// read the signals, and what was before.
    pub(crate) fn block() -> io::Result<(Self, Before)> {
        let before = Before {
            mask: Mask::ALL.set()?,
            ignores_children: ignore_children(false)?,
        };
        Ok((Self::open()?, before))
    }

    /// Opens a descriptor for this process: what a parent opened reads the parent's signals.
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

    /// Returns the descriptor, to wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Returns what has come since the last look.
    pub(crate) fn read(&self) -> io::Result<Vec<Signal>> {
        let mut found = Vec::new();
        let mut batch = [0; BATCH * INFO_BYTES];
        loop {
            let bytes = match rustix::io::read(&self.0, &mut batch) {
                Ok(bytes) => bytes,
                Err(rustix::io::Errno::AGAIN) => return Ok(found),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            found.extend(batch[..bytes].chunks_exact(INFO_BYTES).map(Signal::parse));
        }
    }
}

/// Returns whether a supervisor hands this signal on. SIGKILL and SIGSTOP cannot be seen, SIGCHLD
/// is about its own children.
pub(crate) fn is_forwarded(signal: i32) -> bool {
    (1..=LAST).contains(&signal) && !matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGCHLD)
}

/// Stops this process as `signal` would. Returns when it goes on: true if it was stopped at all,
/// which the kernel does not do where nobody could continue it.
pub(crate) fn stop_self(signal: i32, mask: Mask) -> bool {
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        let _ = nix::sys::signal::raise(signal);
    }
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

/// Sends a signal, by number, to a child that is not reaped: its pid is nobody else's. With `group`
/// to its process group, if it leads one, which exists for as long as it is not reaped.
pub(crate) fn send_to_child(pid: u32, signal: i32, group: bool) -> io::Result<()> {
    let pid = pid.cast_signed();
    let leads = || getpgid(Pid::from_raw(pid)).is_ok_and(|found| Pid::as_raw(Some(found)) == pid);
    let to = if group && leads() { -pid } else { pid };
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::kill(to, signal) }.into()).map(drop)
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

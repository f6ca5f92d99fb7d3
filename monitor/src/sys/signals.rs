//! Signals as a descriptor: all of them blocked, read one by one; and signals to children. Raw
//! system calls, because libc keeps two real-time signals for itself, and those are forwarded as
//! well.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::process::{Pid, getpgid};

use super::check;
use super::inherited::ignored_pipe;
use super::poll::readable;

/// Bytes of the kernel's signal set.
const SET_BYTES: usize = 8;

/// Signals of one look at the descriptor; more stay for the next.
const BATCH: usize = 32;

/// Bytes of what a descriptor tells of one signal.
const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// `si_code` of signals about a child: from its exit (1) to its going on after a stop (6).
const ABOUT_A_CHILD: std::ops::RangeInclusive<i32> = libc::CLD_EXITED..=libc::CLD_CONTINUED;

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
    /// True if SIGPIPE was.
    ignores_pipe: bool,
}

impl Before {
    /// Makes it so again. Safe between fork and exec.
    pub(crate) fn restore(self) -> io::Result<()> {
        if self.ignores_children {
            ignore(libc::SIGCHLD, true)?;
        }
        ignore(libc::SIGPIPE, self.ignores_pipe)?;
        self.mask.set().map(drop)
    }
}

/// Ignores a signal, or gives it its default action; returns whether it was ignored. A process that
/// ignores SIGCHLD, which is inherited, gets no status, and the pids of its children are free
/// before it has looked.
fn ignore(signal: i32, ignore: bool) -> io::Result<bool> {
    let handler = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed.
    let before = unsafe { libc::signal(signal, handler) };
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
    /// The pid of the process that sent it; 0 if the kernel did.
    pub(crate) sender: u32,
    /// True if it tells of a child, as SIGCHLD does, and whatever else a child was made to send.
    pub(crate) is_about_child: bool,
}

impl Signal {
    /// Reads what a descriptor tells of one signal.
    fn parse(info: &[u8]) -> Self {
        let number = |at: usize| i32::from_ne_bytes(std::array::from_fn(|byte| info[at + byte]));
        let (signal, code) = (
            number(offset_of!(libc::signalfd_siginfo, ssi_signo)),
            number(offset_of!(libc::signalfd_siginfo, ssi_code)),
        );
        let is_of_children = matches!(signal, libc::SIGCHLD | libc::SIGCONT);
        Self {
            number: signal,
            by_kernel: code == libc::SI_KERNEL,
            sender: number(offset_of!(libc::signalfd_siginfo, ssi_pid)).cast_unsigned(),
            is_about_child: is_of_children && ABOUT_A_CHILD.contains(&code),
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
            ignores_children: ignore(libc::SIGCHLD, false)?,
            ignores_pipe: ignored_pipe(),
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

    /// Returns a future that ends when this signal comes; all others are taken and forgotten.
    ///
    /// # Errors
    /// When there is no tokio runtime with I/O.
    pub(crate) fn wait_for(&self, signal: i32) -> io::Result<impl Future<Output = ()> + '_> {
        let ready = readable(self.0.try_clone()?)?;
        Ok(async move {
            while let Ok(mut ready) = ready.readable().await {
                let came = self.read().unwrap_or_default();
                if came.iter().any(|came| came.number == signal) {
                    return;
                }
                ready.clear_ready();
            }
            std::future::pending::<()>().await;
        })
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

/// Stops this process as `signal` would, if that is still wanted when it is about to come: a
/// SIGCONT after that takes it back. Returns when it goes on: true unless it was wanted and not
/// done, which the kernel does not do where nobody could continue it.
pub(crate) fn stop_self(signal: i32, is_wanted: impl FnOnce() -> bool) -> bool {
    if signal == libc::SIGSTOP {
        if is_wanted() {
            // SAFETY: the call takes no pointer. This process stops here.
            unsafe { libc::kill(libc::getpid(), signal) };
        }
        return true;
    }
    // SAFETY: as above; it waits.
    unsafe { libc::kill(libc::getpid(), signal) };
    if !is_wanted() {
        let _ = ignore(signal, true).and_then(|_| ignore(signal, false));
        return true;
    }
    // It stops here.
    let _ = Mask::ALL.without(signal).set();
    let _ = Mask::ALL.set();
    is_pending(libc::SIGCONT)
}

fn is_pending(signal: i32) -> bool {
    pending() >> (signal - 1) & 1 == 1
}

/// Returns the signals that are blocked and have come, with signal 1 as bit 0.
fn pending() -> u64 {
    let mut pending = 0_u64;
    // SAFETY: the set lives until the call returns and has the size that is given.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, SET_BYTES) };
    if result == 0 { pending } else { 0 }
}

/// Sends this process those signals of a set that have not come to it; all are blocked.
pub(crate) fn catch_up(set: SignalSet) {
    let missing = set.0 & !pending();
    for signal in (1..=LAST).filter(|signal| missing >> (signal - 1) & 1 == 1) {
        // SAFETY: the call takes no pointer.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}

/// Waits until whoever was sending a signal to this process and to others, its group for example,
/// has sent it to all. They are sent under the lock of the list of tasks, which this call takes for
/// writing, also where it is refused:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/signal.c?h=v6.12.117#n1627>
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/sys.c?h=v6.12.117#n1103>.
pub(crate) fn let_senders_finish() {
    let _ = rustix::process::setpgid(None, Some(rustix::process::getpgrp()));
}

/// Signals by number, bit 0 for signal 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SignalSet(u64);

impl SignalSet {
    /// Returns the set of what has come, without what tells of children.
    pub(crate) fn of(signals: &[Signal]) -> Self {
        let heard = signals.iter().filter(|signal| !signal.is_about_child);
        Self(heard.fold(0, |set, signal| set | 1 << (signal.number - 1)))
    }

    /// Returns whether it has this signal.
    pub(crate) fn has(self, signal: i32) -> bool {
        (1..=LAST).contains(&signal) && self.0 >> (signal - 1) & 1 == 1
    }

    /// Returns it as bytes.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.to_ne_bytes()
    }

    /// Returns the set of these bytes.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_ne_bytes(bytes))
    }
}

/// Ends this process by a signal, without a core of its own. Returns where that cannot be: the
/// first process of a pid namespace does not die of what it sends itself, and SIGKILL would say
/// that this process was killed.
pub(crate) fn die_of(signal: i32) {
    if signal == libc::SIGKILL || !(1..=LAST).contains(&signal) {
        return;
    }
    // A limit of 0 is not enough where a program takes the cores.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    // It is refused for those that can have no handler, which are none of these.
    let _ = ignore(signal, false);
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(libc::getpid(), signal) };
    let _ = Mask::ALL.without(signal).set();
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

//! One signal to exactly one process.
//!
//! The race: a pid can be free and taken again between the look and the signal. The sandwich settles
//! it: the process is a living member (the reading of the map that named it is this first look), the
//! descriptor is opened, the record is *still* live. A record stops being live before its pid can be
//! used again (I2), so the descriptor is that process's, and the signal goes through the descriptor.

use std::os::fd::OwnedFd;

use lifemon_ebpf::{LIVE, ProcessId};
use nix::sys::signal::Signal;

use crate::kernel::{Error, Tracker};
use crate::session::{open_pidfd, send_signal};

/// What came of a signal.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was sent, through this descriptor.
    Sent(OwnedFd),
    /// The process has died since it was read: its pid may be anybody's, so nothing was sent.
    Stale,
    /// The process is dying: the signal had nobody to go to.
    Dying,
    /// No descriptor is left to open.
    NoRoom,
    /// It may not be sent.
    Denied(String),
}

/// Sends `signal` to `id`, which was a living member a moment ago, or to nobody.
pub(crate) fn strike(tracker: &Tracker, id: ProcessId, signal: Signal) -> Result<Outcome, Error> {
    let pidfd = match open_pidfd(id.pid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            return Ok(match error.raw_os_error() {
                // Nobody, or (on some kernels) a thread of somebody else.
                Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Outcome::Stale,
                Some(libc::EMFILE | libc::ENFILE) => Outcome::NoRoom,
                _ => Outcome::Denied(format!("cannot be opened: {error}")),
            });
        }
    };
    if !is_live(tracker, id)? {
        return Ok(Outcome::Stale);
    }
    match send_signal(&pidfd, signal as i32) {
        Ok(()) => Ok(Outcome::Sent(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Outcome::Dying),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Outcome::Denied(
            "no permission to signal it: CAP_KILL is missing".to_owned(),
        )),
        Err(error) => Ok(Outcome::Denied(format!("cannot be signalled: {error}"))),
    }
}

/// A member without a record (the lineage map was full) is never struck: nothing proves who it is.
fn is_live(tracker: &Tracker, id: ProcessId) -> Result<bool, Error> {
    Ok(tracker
        .record(&id)?
        .is_some_and(|record| record.state == LIVE))
}

/// Lets this thread, and those that it starts from now on, come before others where that is permitted:
/// who kills a tree that forks without end must not share the processor with all of it until the kill
/// begins.
pub(crate) fn go_first() {
    const HIGHEST: libc::c_int = -20;
    // SAFETY: no memory is passed. On Linux 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, HIGHEST) };
}

/// Real-time priority of this thread while it kills, where that is permitted: the killer must not
/// wait behind those it kills.
#[derive(Debug)]
pub(super) struct Priority {
    /// The thread that was raised; it is not always the one that drops this.
    thread: Option<libc::pid_t>,
}

impl Priority {
    pub(super) fn raise() -> Self {
        // SAFETY: no memory is passed.
        let own = unsafe { libc::gettid() };
        Self {
            thread: schedule(own, libc::SCHED_FIFO, 1).then_some(own),
        }
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        if let Some(thread) = self.thread {
            schedule(thread, libc::SCHED_OTHER, 0);
        }
    }
}

fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameters live until the call returns.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) == 0 }
}

//! The guardian's part in job control: owner and command stop and go on as one. What the group of
//! the owner is sent reaches both; this is for the rest.
//!
//! - Nothing wakes up whom a stop concerns but the parent, and the owner's parent is somebody else.
//!   So the guardian looks now and then whether the owner was stopped alone.
//! - The owner stops with the command, but cannot hear that the command goes on. The guardian does.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::proc;
use crate::sys::pidfd;
use crate::sys::signals::send_to_child;

/// Pause between two looks at the owner.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// The letter of a process that a signal has stopped, in its `stat`.
const STOPPED: char = 'T';

/// The stops of one command.
#[derive(Debug)]
pub(super) struct Stops {
    owner_pid: u32,
    command: u32,
    /// True if a stop of the owner is one for the whole group of the command.
    is_for_group: bool,
    /// True from its stop until it goes on.
    is_stopped: bool,
    /// True if the guardian has stopped it.
    by_guardian: bool,
    /// The stop of the owner that belongs to it, as far as it was seen.
    owners: Option<u64>,
}

impl Stops {
    pub(super) fn new(owner_pid: u32, command: u32, is_for_group: bool) -> Self {
        Self {
            owner_pid,
            command,
            is_for_group,
            is_stopped: false,
            by_guardian: false,
            owners: None,
        }
    }

    /// Stops the command where the owner is stopped and the command is not, and lets it go on where
    /// it was stopped for that and the owner goes on: a SIGCONT to both can come to the one before
    /// the SIGSTOP of the guardian and to the other after it.
    pub(super) fn look(&mut self) {
        let owners = stop_of(self.owner_pid);
        if self.by_guardian && !is_stopped(self.owner_pid) {
            self.by_guardian = false;
            self.owners = None;
            self.send(libc::SIGCONT);
            return;
        }
        if self.is_stopped {
            self.owners = self.owners.or(owners);
            return;
        }
        self.owners = owners;
        self.by_guardian = owners.is_some();
        if !self.by_guardian {
            return;
        }
        self.send(libc::SIGSTOP);
        // What comes to the owner from here on it hands on, and what comes to its group reaches the
        // command; what came to both before this SIGSTOP would be lost until the next look.
        if !is_stopped(self.owner_pid) {
            self.send(libc::SIGCONT);
        }
    }

    /// Notes that the command was stopped; returns whether the owner is to know.
    pub(super) fn stopped(&mut self) -> bool {
        self.is_stopped = true;
        !self.by_guardian
    }

    /// Notes that the command goes on: the owner does as well, if it has stopped with it. A stop of
    /// the owner that is newer than that one is for the command too, at the next look.
    pub(super) fn goes_on(&mut self, owner: Option<&OwnedFd>) {
        let now = stop_of(self.owner_pid);
        let is_that_stop = self.owners.is_none_or(|owners| now == Some(owners));
        // A stop by the guardian that was taken back at once is not reported to it.
        if (self.is_stopped || self.by_guardian) && is_that_stop {
            self.wake(owner);
        }
        self.is_stopped = false;
        self.by_guardian = false;
        self.owners = None;
    }

    /// Lets the owner go on, to hear what there is to hear.
    pub(super) fn wake(&self, owner: Option<&OwnedFd>) {
        if is_stopped(self.owner_pid)
            && let Some(owner) = owner
        {
            // One that is dead needs nothing.
            let _ = pidfd::send_signal(owner, libc::SIGCONT);
        }
    }

    /// Sends the command a signal: it is not reaped, so the pid is its own.
    fn send(&self, signal: i32) {
        let _ = send_to_child(self.command, signal, self.is_for_group);
    }
}

/// Returns which stop the process is in: a number that is no other stop's.
fn stop_of(pid: u32) -> Option<u64> {
    is_stopped(pid).then(|| proc::switches(pid)).flatten()
}

/// Returns whether a process that is not reaped, or the owner, is stopped by a signal.
pub(super) fn is_stopped(pid: u32) -> bool {
    proc::stat(pid).is_some_and(|stat| stat.state == STOPPED)
}

//! The guardian's part in job control: owner and command stop and go on as one. What the group of
//! the owner is sent reaches both; this is for the rest.
//!
//! - Nothing wakes up whom a stop concerns but the parent, and the owner's parent is somebody else.
//!   So the guardian looks now and then whether the owner was stopped alone.
//! - The owner stops with the command, but cannot hear that the command goes on. The guardian does.
//!
//! Race: the guardian hears late, and only the last of several changes. When the owner stands still
//! and the command does not, either the owner was stopped last, and the command has to stop, or the
//! command went on last, and the owner has to go on. Invariant: the owner goes on only from a stop
//! in which it was seen while the command was stopped too. The command's continuation is later than
//! that stop; from any other stop of the owner it may be earlier.
//!
//! Race: a SIGCONT that the owner hands on crosses a stop. Where the owner stands still when the
//! guardian reads it, that stop is the later one, and the SIGCONT is void, as in the kernel. The
//! other way round, the owner counts what it has handed on, and the report of a stop says how many
//! of them the guardian had read: the owner does not stop for a stop that it has ended itself.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::proc;
use crate::sys::pidfd;
use crate::sys::signals::send_to_child;

/// Longest pause between two looks at the owner.
const LOOK: Duration = Duration::from_millis(250);

/// Pause after the command was stopped: its owner may be about to stop. It doubles with each look.
const LOOK_FIRST: Duration = Duration::from_millis(1);

/// The letter of a process that a signal has stopped, in its `stat`.
const STOPPED: char = 'T';

/// The letter of a process whose first thread has ended.
const ZOMBIE: char = 'Z';

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
    /// The stop in which the owner was seen while the command was stopped.
    owners: Option<u64>,
    /// Until the next look.
    pause: Duration,
    /// SIGCONTs that the owner has handed on and this process has read.
    continuations: u64,
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
            pause: LOOK,
            continuations: 0,
        }
    }

    /// Returns how long to wait for the next look.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks at the owner. Returns its stop where the command has to stop for it, unless it was
    /// stopped or went on before and this was not heard yet: [`Stops::stop`] is for after that.
    /// Where the command was stopped for such a stop and the owner goes on, the command does too: a
    /// SIGCONT to both can come to the one before the SIGSTOP of the guardian and to the other
    /// after it.
    pub(super) fn look(&mut self) -> Option<u64> {
        self.pause = (2 * self.pause).min(LOOK);
        let owners = stop_of(self.owner_pid);
        if self.by_guardian && !is_stopped(self.owner_pid) {
            self.by_guardian = false;
            self.owners = None;
            self.send(libc::SIGCONT);
            return None;
        }
        if self.is_stopped {
            self.see_both();
            return None;
        }
        owners
    }

    /// Stops the command for this stop of the owner, if it is not stopped. All that happened to the
    /// command before that stop has been heard: if it goes on from here on, it does so later.
    pub(super) fn stop(&mut self, owners: u64) {
        if self.is_stopped || stop_of(self.owner_pid) != Some(owners) {
            return;
        }
        self.owners = Some(owners);
        self.by_guardian = true;
        self.send(libc::SIGSTOP);
        // What comes to the owner from here on it hands on, and what comes to its group reaches the
        // command; what came to both before this SIGSTOP would be lost until the next look.
        if !is_stopped(self.owner_pid) {
            self.by_guardian = false;
            self.owners = None;
            self.send(libc::SIGCONT);
        }
    }

    /// Notes in which stop the owner is, if the command is stopped at the same time.
    fn see_both(&mut self) {
        let owners = stop_of(self.owner_pid);
        // The first thread of the command may have ended before the others.
        let state = proc::stat(self.command).map(|stat| stat.state);
        let is_stopped = matches!(state, Some(STOPPED | ZOMBIE));
        if owners.is_some() && is_stopped && stop_of(self.owner_pid) == owners {
            self.owners = owners;
        }
    }

    /// Takes a SIGCONT from the owner; returns whether it is still in force.
    pub(super) fn asked_to_go_on(&mut self) -> bool {
        self.continuations += 1;
        !is_stopped(self.owner_pid)
    }

    /// Notes that the command was stopped. Returns, where the owner is to know, after how many
    /// SIGCONTs from the owner.
    pub(super) fn stopped(&mut self) -> Option<u64> {
        // A second time in a row: it went on meanwhile, and this one is somebody else's.
        self.by_guardian &= !self.is_stopped;
        self.is_stopped = true;
        self.pause = LOOK_FIRST;
        if !self.by_guardian {
            self.owners = None;
        }
        self.see_both();
        (!self.by_guardian).then_some(self.continuations)
    }

    /// Notes that the command goes on: the owner does as well, if it has stopped with it. Any other
    /// stop of the owner is for the command too, at the next look.
    pub(super) fn goes_on(&mut self, owner: Option<&OwnedFd>) {
        if self.owners.is_some() && stop_of(self.owner_pid) == self.owners {
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

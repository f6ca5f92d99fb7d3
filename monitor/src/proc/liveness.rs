//! Three words for the end of a process. They are different things, and there are no others:
//!
//! - *live*: some thread of it can still run user code. The kernel half knows exactly
//!   ([`crate::forest::Forest::is_live`]). `/proc` and descriptors show a process as live until it
//!   is gone.
//! - *dead*: no thread of it can run user code again. Its memory and files may be held still, and
//!   its pid is its own. Only the kernel half knows ([`crate::forest::Forest::is_dead`]).
//! - *gone*: all of it is released, its children have another parent, and its descriptor is
//!   readable. It may wait as a zombie for its parent, or its pid may be another process's.
//!
//! [`owns_pid`] answers a different question: does the pid still belong to this process?

use lifemon_ebpf::ProcessId;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Stat, stat, tick_ns};

impl Stat {
    /// Returns whether the process that this task leads is gone. A leader can be a zombie while
    /// other threads of its process run; and one without any thread has just handed its pid to a
    /// thread that executes a program, or is reaped at the next look.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads == 1
    }

    /// Returns whether this is of that very process, to a clock tick.
    pub(super) fn is_of(&self, id: ProcessId) -> bool {
        self.start_ticks == id.start_ns / tick_ns()
    }
}

/// Returns whether this very process is there and not gone; exact to a clock tick. Where `/proc`
/// hides it, it is neither live nor gone.
#[must_use]
pub fn is_live(id: ProcessId) -> bool {
    stat(id.pid).is_some_and(|stat| stat.is_of(id) && !stat.is_gone())
}

/// Returns whether this very process is gone for certain, or its pid is another's.
#[must_use]
pub fn is_gone(id: ProcessId) -> bool {
    match stat(id.pid) {
        None => is_nobodys(id.pid),
        Some(stat) => !stat.is_of(id) || stat.is_gone(),
    }
}

/// Returns whether the task that has this pid now is this process, zombies included: whatever is
/// read of the pid before this is of that process.
#[must_use]
pub fn owns_pid(id: ProcessId) -> bool {
    stat(id.pid).is_some_and(|stat| stat.is_of(id))
}

/// Returns whether another process has the pid of this one by now.
#[must_use]
pub fn has_successor(id: ProcessId) -> bool {
    stat(id.pid).is_some_and(|stat| !stat.is_of(id))
}

/// Returns whether no process has this pid. A missing file alone is no proof: `/proc` can be
/// mounted so that it hides the processes of others.
fn is_nobodys(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None) == Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::super::identify;
    use super::*;

    fn later(id: ProcessId) -> ProcessId {
        ProcessId::new(id.pid, id.start_ns + 1_000_000_000)
    }

    #[test]
    fn this_process_is_live_and_one_that_had_its_pid_is_not() {
        let own = identify(std::process::id()).unwrap();
        assert!(is_live(own) && owns_pid(own) && !is_gone(own) && !has_successor(own));
        let other = later(own);
        assert!(!is_live(other) && !owns_pid(other) && is_gone(other) && has_successor(other));
    }

    #[test]
    fn a_pid_of_nobody_is_gone_and_has_no_successor() {
        let nobody = ProcessId::new(u32::MAX / 4, 1);
        assert!(is_gone(nobody) && !is_live(nobody) && !has_successor(nobody));
        assert!(!is_nobodys(1), "also where it may not be signalled");
    }

    #[test]
    fn a_zombie_is_gone_and_owns_its_pid_until_it_is_reaped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = identify(child.id()).unwrap();
        while stat(id.pid).is_some_and(|stat| stat.state != 'Z') {
            std::thread::yield_now();
        }
        assert!(is_gone(id) && !is_live(id) && owns_pid(id));
        child.wait().unwrap();
        assert!(is_gone(id) && !owns_pid(id));
    }
}

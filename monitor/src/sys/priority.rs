//! Priority over those that are followed or killed: a fork bomb must not starve its killer.

use rustix::process::setpriority_process;
use rustix::thread::{Pid, gettid};

use super::limits::raise_descriptor_limit;

/// The best nice value.
const HIGHEST: i32 = -20;

/// Prepares this process to follow or to kill a tree of any size, however busy that is: raises the
/// limit of descriptors, and the priority of this thread and of those that it starts from now on.
/// What is not permitted stays as it is.
pub(crate) fn go_first() {
    raise_descriptor_limit();
    // On Linux the calling thread alone.
    let _ = setpriority_process(None, HIGHEST);
}

/// Real-time priority of one thread while this lives, where that is permitted.
#[derive(Debug)]
pub(crate) struct RealTime {
    /// The thread that was raised; it is not always the one that drops this.
    thread: Option<Pid>,
}

impl RealTime {
    /// Raises the calling thread.
    pub(crate) fn begin() -> Self {
        let own = gettid();
        Self {
            thread: schedule(own, libc::SCHED_FIFO, 1).then_some(own),
        }
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if let Some(thread) = self.thread {
            schedule(thread, libc::SCHED_OTHER, 0);
        }
    }
}

/// Puts a thread under another scheduling policy; returns whether that was permitted.
fn schedule(thread: Pid, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    let thread = thread.as_raw_nonzero().get();
    // SAFETY: the parameters live until the call returns.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) == 0 }
}

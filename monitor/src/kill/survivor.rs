//! Why a process that was to be killed is still there.
//!
//! In the kernel:
//! - A core dump and a tracer stop a thread before it counts as dead:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n897>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n898>
//! - A frozen task sleeps on with SIGKILL pending:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/freezer.c?h=v6.12.118#n62>

use std::io;

use crate::ProcessId;
use crate::proc;
use crate::process::is_same_process;

/// Returns why it could not be signalled.
pub(super) fn denied(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "no permission to signal it: CAP_KILL is missing".to_owned(),
        _ => format!("cannot be signalled: {error}"),
    }
}

/// Returns that `/proc` does not show a process that is there; `None` where it is gone.
fn hidden(id: ProcessId) -> Option<String> {
    let trouble = proc::trouble().filter(|_| !proc::is_gone(id))?;
    Some(format!("its state is not known: {trouble}"))
}

/// Returns why a process that has SIGKILL pending is still there, as far as it shows from outside.
pub(super) fn reason(id: ProcessId) -> String {
    let pid = id.pid;
    let Some(stat) = proc::stat(pid) else {
        return hidden(id).unwrap_or_else(|| "dying".to_owned());
    };
    if !is_same_process(stat.identity(pid), id) {
        return "dying".to_owned();
    }
    if let Some(cgroup) = proc::frozen_cgroup(pid) {
        return format!("in a frozen cgroup ({cgroup}): thaw it");
    }
    match stat.state {
        'D' => match proc::wait_channel(pid) {
            Some(channel) => format!("uninterruptible in {channel} (state D)"),
            None => "uninterruptible (state D)".to_owned(),
        },
        't' | 'T' => match proc::tracer(pid) {
            Some(tracer) => format!("stopped by its tracer {tracer}"),
            None => "stopped".to_owned(),
        },
        'Z' | 'X' => "dying".to_owned(),
        state => match proc::tracer(pid) {
            Some(tracer) => format!("held by its tracer {tracer} (state {state})"),
            None => format!("has not died yet (state {state})"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_there_is_dying_and_who_runs_is_not() {
        assert_eq!(reason(ProcessId::new(u32::MAX / 4, 1)), "dying");
        let own = proc::identify(std::process::id()).unwrap();
        assert!(
            reason(own).starts_with("has not died yet"),
            "{}",
            reason(own)
        );
    }
}

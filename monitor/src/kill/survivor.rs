//! Why a process that has SIGKILL pending is still there.

use crate::proc;

/// The reason, as far as it shows from outside.
pub(super) fn reason(pid: u32) -> String {
    let Some(stat) = proc::stat(pid) else {
        return "dying".to_owned();
    };
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

//! Why a process that has SIGKILL pending is still there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::proc;

/// The reason, as far as it shows from outside.
pub(super) fn reason(pid: u32) -> String {
    let Some(stat) = proc::stat(pid) else {
        return "dying".to_owned();
    };
    if let Some(cgroup) = frozen_cgroup(pid) {
        return format!("in a frozen cgroup ({cgroup}): thaw it");
    }
    match stat.state {
        'D' => match proc::wait_channel(pid) {
            Some(channel) => format!("uninterruptible in {channel} (state D)"),
            None => "uninterruptible (state D)".to_owned(),
        },
        't' | 'T' => match tracer(pid) {
            Some(tracer) => format!("stopped by its tracer {tracer}"),
            None => "stopped".to_owned(),
        },
        'Z' | 'X' => "dying".to_owned(),
        state => match tracer(pid) {
            Some(tracer) => format!("held by its tracer {tracer} (state {state})"),
            None => format!("has not died yet (state {state})"),
        },
    }
}

fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// The frozen cgroup of the process: of the v1 freezer, or of the v2 hierarchy.
fn frozen_cgroup(pid: u32) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    lines.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v1 = controllers
            .split(',')
            .any(|controller| controller == "freezer");
        let mount = match (is_v1, id) {
            (true, _) => cgroup_mount("cgroup", "freezer")?,
            (false, "0") => cgroup_mount("cgroup2", "")?,
            _ => return None,
        };
        let directory = mount.join(path.trim_start_matches('/'));
        is_frozen(&directory, is_v1).then(|| path.to_owned())
    })
}

fn is_frozen(directory: &Path, is_v1: bool) -> bool {
    let (file, word) = if is_v1 {
        ("freezer.state", "FR")
    } else {
        ("cgroup.events", "frozen 1")
    };
    fs::read_to_string(directory.join(file)).is_ok_and(|state| state.contains(word))
}

/// Where a cgroup hierarchy is mounted.
fn cgroup_mount(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, found, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let fits = found == kind && (option.is_empty() || options.split(',').any(|o| o == option));
        fits.then(|| PathBuf::from(path))
    })
}

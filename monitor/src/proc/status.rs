//! Single facts about the process that has a pid now, each from a file of its own. The caller
//! checks that the pid still belongs to the process that it means.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::mounts;
use crate::process::Name;
use crate::sys::text;

/// Returns the name (`comm`) of the process that has this pid. It is for that process to choose.
#[must_use]
pub fn name(pid: u32) -> Option<Name> {
    let bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(Name::from_bytes(
        bytes.strip_suffix(b"\n").unwrap_or(&bytes),
    ))
}

/// Returns one field of `/proc/<pid>/status`, without white space around it.
pub(super) fn field(pid: u32, name: &str) -> Option<String> {
    let status = text::read(format!("/proc/{pid}/status")).ok()?;
    let mut values = status.lines().filter_map(|line| line.strip_prefix(name));
    let value = values.find_map(|value| value.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// Returns the pid of the process that traces this one.
pub(crate) fn tracer(pid: u32) -> Option<u32> {
    let tracer = field(pid, "TracerPid")?.parse().ok()?;
    (tracer != 0).then_some(tracer)
}

/// Returns whether the process ignores SIGHUP, as `nohup` lets it.
pub(crate) fn ignores_hangup(pid: u32) -> bool {
    const SIGHUP: u64 = 1;
    let ignored = field(pid, "SigIgn").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    ignored.is_some_and(|mask| mask & SIGHUP != 0)
}

/// Returns the soft and the hard limit of file locks, each `None` where there is none.
pub(crate) fn lock_limits(pid: u32) -> Option<[Option<u64>; 2]> {
    let limits = text::read(format!("/proc/{pid}/limits")).ok()?;
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max file locks"))?;
    let mut words = line.split_ascii_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        word => Some(Some(word.parse().ok()?)),
    };
    Some([next()?, next()?])
}

/// Returns how often the task with this pid has left a processor: one that has not since a stop is
/// in that stop still.
pub(crate) fn switches(pid: u32) -> Option<u64> {
    let count = |name| field(pid, name)?.parse::<u64>().ok();
    Some(count("voluntary_ctxt_switches")? + count("nonvoluntary_ctxt_switches")?)
}

/// Returns where in the kernel the task with this pid waits; `None` when it does not, or that may
/// not be known.
#[must_use]
pub fn wait_channel(pid: u32) -> Option<String> {
    let channel = text::read(format!("/proc/{pid}/wchan")).ok()?;
    (!channel.is_empty() && channel != "0").then_some(channel)
}

/// Returns the frozen control group of the process: of the v1 freezer, or of the v2 hierarchy.
pub(crate) fn frozen_cgroup(pid: u32) -> Option<String> {
    // As bytes: the directory is opened by its path.
    let lines = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    lines.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v1 = controllers
            .split(|byte| *byte == b',')
            .any(|controller| controller == b"freezer");
        let mount = match (is_v1, id) {
            (true, _) => mounts::cgroup("cgroup", "freezer")?,
            (false, b"0") => mounts::cgroup("cgroup2", "")?,
            _ => return None,
        };
        let below = path.strip_prefix(b"/").unwrap_or(path);
        let directory = mount.join(OsStr::from_bytes(below));
        is_frozen(&directory, is_v1).then(|| String::from_utf8_lossy(path).into_owned())
    })
}

fn is_frozen(directory: &Path, is_v1: bool) -> bool {
    let (file, word) = if is_v1 {
        ("freezer.state", "FR")
    } else {
        ("cgroup.events", "frozen 1")
    };
    text::read(directory.join(file)).is_ok_and(|state| state.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_process() {
        let own = std::process::id();
        assert_eq!(field(own, "Tgid"), Some(own.to_string()));
        assert_eq!(field(own, "Tgi"), None);
        assert_eq!(tracer(own), None);
        assert!(!ignores_hangup(u32::MAX / 4));
        assert!(name(own).is_some_and(|name| !name.is_empty() && !name.contains('\n')));
        assert_eq!(name(u32::MAX / 4), None);
    }
}

//! Pids of the children of a process, and of all processes.

use std::collections::HashMap;
use std::fs;
use std::io;

use lifemon_ebpf::ProcessId;

use super::{identify, owns_pid, stat};
use crate::sys::text;

/// Returns every pid that `/proc` shows.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn pids() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// Returns how many threads this process has; `None` where `/proc` does not show them.
pub(crate) fn own_threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// Returns the pids of the children of a process, those of every thread of it, as the kernel lists
/// them; `None` where the kernel keeps no such lists.
pub(crate) fn children(parent: u32) -> Option<Vec<u32>> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Some(Vec::new());
    };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match text::read(task.path().join("children")) {
            Ok(pids) => found.extend(pids.split_ascii_whitespace().flat_map(str::parse::<u32>)),
            // The thread is gone, or there are no lists at all.
            Err(_) if task.path().join("stat").exists() => return None,
            Err(_) => {}
        }
    }
    Some(found)
}

/// Returns the children of exactly this process; nobody where its pid is another's.
pub(crate) fn children_of(parent: ProcessId) -> impl Iterator<Item = ProcessId> {
    let pids = if owns_pid(parent) {
        children(parent.pid).unwrap_or_default()
    } else {
        Vec::new()
    };
    pids.into_iter().filter_map(identify)
}

/// Returns the pids of all children by parent, from a look at every process.
pub(crate) fn children_by_parent() -> HashMap<u32, Vec<u32>> {
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for pid in pids().unwrap_or_default() {
        if let Some(stat) = stat(pid) {
            all.entry(stat.parent).or_default().push(pid);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_more_is_counted() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(own_threads().unwrap() > 1);
        drop(stop);
        let _ = other.join().unwrap();
    }

    #[test]
    fn both_ways_to_list_children_agree() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id();
        assert!(children(own).is_none_or(|pids| pids.contains(&child.id())));
        assert!(children_by_parent()[&own].contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

//! Where the files of a process are: under its pid, or, when its leader thread has exited and
//! others run, under one of those. A thread gives up its files and its memory when it exits,
//! whatever the others do: the leader's files and command line are empty then, and its memory is 0.

use std::fs;
use std::path::PathBuf;

use super::{Stat, parse_stat, stat};

/// Returns the directory of `/proc` that has the files of whoever has this pid now.
pub(super) fn files_of(pid: u32) -> PathBuf {
    let own = PathBuf::from(format!("/proc/{pid}"));
    if !stat(pid).is_some_and(|stat| stat.has_no_leader()) {
        return own;
    }
    let threads = fs::read_dir(own.join("task")).into_iter().flatten();
    let mut threads = threads.flatten().map(|entry| entry.path());
    let runs = |stat: Stat| !matches!(stat.state, 'Z' | 'X');
    let is_running = |path: &PathBuf| {
        let line = fs::read(path.join("stat")).ok();
        line.and_then(|line| parse_stat(&line)).is_some_and(runs)
    };
    threads.find(is_running).unwrap_or(own)
}

impl Stat {
    /// Returns the resident memory of the process that this is of, in bytes.
    pub(crate) fn resident_bytes(&self, pid: u32) -> u64 {
        let of_thread = || {
            let line = fs::read(files_of(pid).join("stat")).ok()?;
            Some(parse_stat(&line)?.resident_pages)
        };
        let pages = if self.has_no_leader() {
            of_thread().unwrap_or_default()
        } else {
            self.resident_pages
        };
        pages.saturating_mul(page_bytes())
    }
}

/// Returns the size of a page.
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

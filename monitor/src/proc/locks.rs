//! Locks on files, as `/proc/locks` lists them: by the pid of who has taken them and the device and
//! inode of the file. The path is that of a descriptor of that process.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::threads::files_of;
use crate::sys::text;

/// Locks that are looked at.
const LOCKS_MAX: usize = 65_536;

/// A lock on a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// `flock`, `posix`, `lease`.
    pub kind: String,
    /// `read` or `write`.
    pub access: String,
    /// The file; `None` where no descriptor of the process leads to it.
    pub path: Option<PathBuf>,
    inode: u64,
}

/// Returns the locks by the pids of who holds them.
#[must_use]
pub fn locks() -> HashMap<u32, Vec<Lock>> {
    let text = text::read("/proc/locks").unwrap_or_default();
    let mut found: HashMap<u32, Vec<Lock>> = HashMap::new();
    for (pid, lock) in text.lines().take(LOCKS_MAX).filter_map(parse) {
        found.entry(pid).or_default().push(lock);
    }
    found
}

/// Finds the files of the locks of one process.
pub fn find_paths(pid: u32, locks: &mut [Lock]) {
    let Ok(entries) = fs::read_dir(files_of(pid).join("fd")) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if !target.is_absolute() {
            continue;
        }
        let asked = statx(CWD, entry.path(), AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        let Ok(known) = asked else {
            continue;
        };
        for lock in locks.iter_mut().filter(|lock| lock.inode == known.stx_ino) {
            lock.path = Some(target.clone());
        }
    }
}

/// Reads `1: POSIX  ADVISORY  WRITE 77 08:01:123 0 EOF`; whoever waits for a lock (`->`) has none.
fn parse(line: &str) -> Option<(u32, Lock)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let kind = fields.next().filter(|kind| *kind != "->")?;
    let access = fields.nth(1)?;
    let pid = fields.next()?.parse().ok()?;
    let inode = fields.next()?.rsplit(':').next()?.parse().ok()?;
    let lock = Lock {
        kind: kind.to_ascii_lowercase(),
        access: access.to_ascii_lowercase(),
        path: None,
        inode,
    };
    Some((pid, lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_this_process_is_found_with_its_file() {
        let own = std::process::id();
        let path = std::env::temp_dir().join(format!("lock-{own}"));
        let file = fs::File::create(&path).unwrap();
        file.lock().unwrap();
        let mut found = locks().remove(&own).unwrap();
        find_paths(own, &mut found);
        fs::remove_file(&path).unwrap();
        let lock = found
            .iter()
            .find(|lock| lock.path.as_ref() == Some(&path))
            .unwrap();
        assert_eq!(
            (lock.kind.as_str(), lock.access.as_str()),
            ("flock", "write")
        );
    }

    #[test]
    fn who_waits_for_a_lock_has_none() {
        assert_eq!(
            parse("1: -> POSIX  ADVISORY  WRITE 77 08:01:123 0 EOF"),
            None
        );
        assert_eq!(parse("2: OFDLCK ADVISORY  WRITE -1 08:01:123 0 EOF"), None);
    }
}

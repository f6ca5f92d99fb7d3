//! The lock of a tracker: `flock` on a directory that only root can open, so that nobody else can
//! take it. Waiting for it has a deadline, says who holds it, and ends when the user asks to stop.
//!
//! It is tried again and again instead of slept for: a sleeping `flock` cannot be given a deadline,
//! and handlers that restart system calls would make it deaf to Ctrl-C.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, major, minor, openat};
use rustix::io::Errno;

use super::Error;
use crate::proc;
use crate::sys::text;

/// Between two tries. The lock is held for milliseconds, by few.
const PAUSE: Duration = Duration::from_millis(1);

/// Time after which a person begins to wonder.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// Set when the user has asked this process to stop.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Ends waits for a lock once `stop` is set, by a handler of signals for example. Only the first
/// call has an effect.
pub fn stop_waiting_when(stop: Arc<AtomicBool>) {
    let _ = STOP.set(stop);
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] OwnedFd);

/// The limits of a wait for a lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    deadline: Duration,
    /// If set, the wait ends when the user asks to stop.
    heeds_stop: bool,
}

impl Patience {
    /// Longer than the lock is held on an overloaded machine: whoever holds it then is stuck.
    pub(super) const FULL: Self = Self {
        deadline: Duration::from_mins(1),
        heeds_stop: true,
    };

    /// To give back what was taken, also when the user has asked to stop. Giving up does little
    /// harm: the next command reclaims it.
    pub(super) const SHORT: Self = Self {
        deadline: Duration::from_secs(5),
        heeds_stop: false,
    };
}

/// Takes the lock of `directory`.
///
/// # Errors
/// [`Error::Locked`] at the deadline, [`Error::Interrupted`] when the user asked to stop, and
/// [`Error::Pin`] when the directory cannot be locked at all.
pub(super) fn lock(directory: impl AsFd, patience: Patience) -> Result<Lock, Error> {
    let failed = |errno: Errno| Error::Pin(errno.into());
    // An open file of its own: a lock belongs to the open file, so that two threads of this
    // process exclude each other as well.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = openat(directory, ".", flags, Mode::empty()).map_err(failed)?;
    let begun = Instant::now();
    let mut has_said = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let waited = begun.elapsed();
        if patience.heeds_stop && is_asked_to_stop() {
            let holder = holder(&file);
            return Err(Error::Interrupted { holder });
        }
        if waited >= patience.deadline {
            let (holder, waited_s) = (holder(&file), waited.as_secs());
            return Err(Error::Locked { holder, waited_s });
        }
        if waited >= SAY_AFTER && !has_said {
            has_said = true;
            log::warn!("waiting for {}, which is using the tracker", holder(&file));
        }
        thread::sleep(PAUSE);
    }
}

fn is_asked_to_stop() -> bool {
    STOP.get().is_some_and(|stop| stop.load(Ordering::SeqCst))
}

/// Returns the name of whoever holds the lock of an open directory, as far as the kernel tells.
fn holder(directory: &OwnedFd) -> String {
    const UNKNOWN: &str = "another process";
    let Ok(stat) = fstat(directory) else {
        return UNKNOWN.to_owned();
    };
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = text::read("/proc/locks").unwrap_or_default();
    holder_in(&locks, &file).map_or_else(
        || UNKNOWN.to_owned(),
        |pid| match proc::name(pid) {
            Some(name) => format!("{} (pid {pid})", name.escape_default()),
            None => format!("pid {pid}"),
        },
    )
}

/// Finds the process that holds a lock on `file` in the text of `/proc/locks`.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // Who waits is listed as well, with an arrow in the place of the kind.
        (words.next() == Some("FLOCK")).then_some(())?;
        let pid = words.nth(2)?;
        (words.next() == Some(file)).then_some(())?;
        pid.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 11 00:1c:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:1c:78 0 EOF
3: FLOCK  ADVISORY  WRITE 13 00:1c:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 00:1c:77 0 EOF
4: FLOCK  ADVISORY  WRITE -1 00:1d:77 0 EOF
";

    #[test]
    fn the_holder_is_found_among_all_locks() {
        assert_eq!(holder_in(LOCKS, "00:1c:77"), Some(13));
        assert_eq!(holder_in(LOCKS, "00:1c:78"), Some(12));
        assert_eq!(holder_in(LOCKS, "00:1c:79"), None);
        // A process that cannot be seen from here.
        assert_eq!(holder_in(LOCKS, "00:1d:77"), None);
    }

    #[test]
    fn a_lock_excludes_within_one_process_and_ends_with_its_drop() {
        let patience = Patience {
            deadline: Duration::from_millis(20),
            heeds_stop: false,
        };
        let name = format!("lifemon-lock-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory");
        let directory = fs::File::open(&path).expect("the same directory");
        fs::remove_dir(&path).expect("its removal");
        // It can be locked although it has been removed: a tracker that was switched off.
        let first = lock(&directory, patience).expect("a free lock");
        let own = format!("(pid {})", std::process::id());
        match lock(&directory, patience) {
            Err(Error::Locked { holder, .. }) => assert!(holder.contains(&own), "{holder}"),
            other => panic!("{other:?}"),
        }
        drop(first);
        lock(&directory, patience).expect("a free lock");
    }
}

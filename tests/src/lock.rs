//! One test at a time on the host-wide tracker, whose pins all test processes share.
//! The lock lies on a directory that exists anyway, so it leaves nothing behind.

use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::wait::poll;

/// Where the pins of the tracker are; locked itself, never written to.
const PINS: &str = "/sys/fs/bpf";
/// Longer than any test may hold it, several times over.
const PATIENCE: Duration = Duration::from_mins(5);

/// The right to use the host-wide tracker, given back on drop.
#[must_use = "the lock is given back when this is dropped"]
#[derive(Debug)]
pub struct HostLock {
    _held: Flock<File>,
}

/// Waits until no other test, in this process or another, holds the host-wide tracker.
///
/// # Panics
/// When the lock is not free within five minutes, or cannot be taken at all.
pub fn host_lock() -> HostLock {
    let open = || File::open(PINS).or_else(|_| File::open(std::env::current_exe()?));
    let mut file = Some(open().expect("neither the pin directory nor this program can be opened"));
    let held = poll(PATIENCE, || {
        match Flock::lock(
            file.take().expect("given back"),
            FlockArg::LockExclusiveNonblock,
        ) {
            Ok(lock) => Some(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                file = Some(back);
                None
            }
            Err((_, errno)) => panic!("cannot lock {PINS}: {errno}"),
        }
    });
    HostLock {
        _held: held.unwrap_or_else(|| panic!("{PINS} was locked for {PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_exclusive_and_given_back() {
        let first = host_lock();
        let other = std::thread::spawn(|| drop(host_lock()));
        std::thread::sleep(Duration::from_millis(30));
        assert!(
            !other.is_finished(),
            "a second lock was given while the first was held"
        );
        drop(first);
        other.join().expect("the second lock");
    }
}

//! One tracker of the host, many tests: who switches it on or off takes the lock alone, who loads a
//! private one shares it, because `attach` takes the host's tracker wherever that is on.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

/// A directory that is always there and that lifemon itself never locks, so that nothing is left
/// behind and no test waits for itself.
const LOCKED: &str = "/sys/fs/cgroup";

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub struct HostLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

fn lock(how: FlockArg) -> HostLock {
    let directory = File::open(LOCKED).unwrap_or_else(|error| panic!("open {LOCKED}: {error}"));
    let lock = Flock::lock(directory, how);
    HostLock(lock.unwrap_or_else(|(_, error)| panic!("lock {LOCKED}: {error}")))
}

/// Takes the lock alone: for tests that switch the host's tracker on or off.
///
/// # Panics
/// When the lock cannot be taken.
#[must_use]
pub fn host_lock() -> HostLock {
    lock(FlockArg::LockExclusive)
}

/// Takes the lock with others: for tests that need the host's tracker to be off.
///
/// # Panics
/// When the lock cannot be taken.
#[must_use]
pub fn private_lock() -> HostLock {
    lock(FlockArg::LockShared)
}

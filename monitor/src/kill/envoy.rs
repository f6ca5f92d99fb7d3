//! A kill in the name of somebody else: an envoy sends the signals with that one's rights, and the
//! kernel decides about each of them. What may not be ended so is left out of the tree, and
//! counted.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use lifemon_ebpf::ProcessId;

/// Sends signals with the rights of whoever has asked for a kill.
pub(crate) trait Envoy: fmt::Debug + Send + Sync {
    /// Sends a signal, by number, through a descriptor of this process; 0 only asks.
    ///
    /// # Errors
    /// `EPERM` where it may not be sent, and whatever the kernel says.
    fn send(&self, id: ProcessId, pidfd: &OwnedFd, signal: i32) -> io::Result<()>;

    /// Returns the user whose processes the closer may kill; `None` where a user does not tell who
    /// may be ended: then there are the killing passes alone.
    fn uid(&self) -> Option<u32>;
}

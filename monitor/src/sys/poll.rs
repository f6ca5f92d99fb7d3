//! Waiting for descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits until one of the descriptors is readable or closed, or the time is over; returns which
/// are.
pub(crate) fn wait_for<const N: usize>(
    sources: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let present = sources.iter().flatten();
    let mut fds: Vec<_> = present
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([false; N]),
        Err(errno) => return Err(errno.into()),
    }
    let mut fds = fds.iter();
    Ok(sources.map(|source| {
        let fd = source.and_then(|_| fds.next());
        fd.is_some_and(|fd| fd.any() == Some(true))
    }))
}

/// Types that own a descriptor.
///
/// # Safety
/// `as_raw_fd` always returns the same descriptor, and it stays open for as long as the value
/// lives.
pub(crate) unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: it owns one descriptor, and closes it when it is dropped.
unsafe impl OwnsDescriptor for OwnedFd {}

/// Registers a socket with the tokio runtime, to wait until it is closed on both sides: what comes
/// on it wakes nobody.
#[cfg(feature = "agent")]
pub(crate) fn closable(inner: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns one descriptor, and closes it when it is dropped.
    unsafe { AsyncFd::register_with_interest(inner, Interest::PRIORITY) }.map_err(io::Error::from)
}

/// Registers `inner` with the tokio runtime, to wait until it is readable.
pub(crate) fn readable<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: an `OwnsDescriptor` keeps its descriptor open and always returns that one.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(io::Error::from)
}

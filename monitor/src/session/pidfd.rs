//! One descriptor of one process.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A descriptor of the process that has this pid now.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Lets this process have as many descriptors as it may: each process that is followed, or that is to be
/// hit, costs one.
pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Sends a signal, by number, through a descriptor: to that process or to nobody.
pub(crate) fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed; the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until the process is gone; false when that cannot be waited for.
pub(crate) async fn gone(pidfd: OwnedFd) -> bool {
    let mut sources = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    // Most are by the time somebody asks: no need to trouble the runtime.
    if poll(&mut sources, PollTimeout::ZERO) == Ok(1) {
        return true;
    }
    match super::readable(pidfd) {
        Ok(pidfd) => pidfd.readable().await.is_ok(),
        Err(_) => false,
    }
}

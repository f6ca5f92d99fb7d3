//! Descriptors of processes: a signal through one hits that process or nobody.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::check;
use super::poll::readable;

/// Opens a descriptor of the process that has this pid now.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(pidfd_open(pid.ok_or_else(invalid)?, PidfdFlags::empty())?)
}

/// Sends a signal, by number, through a descriptor: to that process or to nobody.
pub(crate) fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the only pointer is null, which the call allows.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result).map(drop)
}

/// Returns whether the process is gone: no thread of it is left, and its memory is released. A
/// zombie is gone.
pub(crate) fn is_gone(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut sources = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut sources, PollTimeout::ZERO)? > 0)
}

/// Waits until the process is gone; returns false when that cannot be waited for. Needs a tokio
/// runtime with I/O.
pub(crate) async fn wait_until_gone(pidfd: OwnedFd) -> bool {
    // Most are by the time somebody asks: no need to trouble the runtime.
    if matches!(is_gone(&pidfd), Ok(true)) {
        return true;
    }
    match readable(pidfd) {
        Ok(pidfd) => pidfd.readable().await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_goes_to_the_process_until_it_is_gone_and_then_to_nobody() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(child.id()).unwrap();
        assert!(!is_gone(&pidfd).unwrap());
        send_signal(&pidfd, libc::SIGKILL).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let again = pidfd.try_clone().unwrap();
        assert!(runtime.block_on(async { wait_until_gone(again).await }));
        assert!(is_gone(&pidfd).unwrap(), "a zombie is gone");
        child.wait().unwrap();
        let error = send_signal(&pidfd, libc::SIGKILL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn what_is_no_pid_is_invalid() {
        for pid in [0, u32::MAX] {
            assert_eq!(open(pid).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    }
}

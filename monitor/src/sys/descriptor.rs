//! Numbers and flags of descriptors, for those that are handed on through fork and exec.

use std::io;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;

use super::check;

/// Keeps a descriptor open when this process executes a program, or does not any more. Safe between
/// fork and exec.
pub(crate) fn keep_on_exec(fd: RawFd, is_kept: bool) -> io::Result<()> {
    let flags = if is_kept { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: the call takes no pointer, and changes a flag of the number alone.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }.into()).map(drop)
}

/// Lets the table of descriptors grow at once to `count`: once this process has a second thread,
/// each growth waits for a grace period of the kernel. Where the limit does not allow it, nothing
/// happens.
pub(crate) fn make_room(count: usize) {
    if let Ok(number) = RawFd::try_from(count) {
        drop(fcntl_dupfd_cloexec(std::io::stdin(), number));
    }
}

/// Closes every descriptor but this one and the first three. For a copy made by
/// [`super::child::fork`] alone: that the process which it was made of is dead is told by the end
/// of its channels.
pub(crate) fn close_all_but(fd: OwnedFd) -> OwnedFd {
    const ONLY: RawFd = libc::STDERR_FILENO + 1;
    let fd = fd.into_raw_fd();
    // SAFETY: the call takes no pointer. Whatever had this number belongs to values of the process
    // that was copied: the copy does not use them, and ends without destructors.
    let is_moved = fd == ONLY || unsafe { libc::dup3(fd, ONLY, libc::O_CLOEXEC) } == ONLY;
    if is_moved {
        let rest = ONLY.cast_unsigned() + 1;
        // SAFETY: as above. A kernel without the call leaves them open.
        unsafe { libc::syscall(libc::SYS_close_range, rest, libc::c_uint::MAX, 0) };
    }
    // SAFETY: it is open, and its only owner was given up above.
    unsafe { OwnedFd::from_raw_fd(if is_moved { ONLY } else { fd }) }
}

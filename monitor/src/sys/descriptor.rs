//! Numbers and flags of descriptors, for those that are handed on through fork and exec.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

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

/// Closes every descriptor but these and the first three. For a copy made by
/// [`super::child::fork`] alone: that the process which it was made of is dead is told by the end
/// of its channels.
pub(crate) fn close_all_but<const N: usize>(kept: [&OwnedFd; N]) {
    let mut numbers = kept.map(|fd| fd.as_raw_fd().cast_unsigned());
    numbers.sort_unstable();
    let mut first = libc::STDERR_FILENO.cast_unsigned() + 1;
    for number in numbers {
        if first < number {
            close_range(first, number - 1);
        }
        first = first.max(number + 1);
    }
    close_range(first, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: the call takes no pointer. Whatever has these numbers belongs to values of the
    // process that was copied: the copy does not use them, and ends without destructors. A kernel
    // without the call leaves them open.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

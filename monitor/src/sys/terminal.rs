//! The foreground of a terminal.

use std::io;
use std::os::fd::AsFd;

use rustix::process::Pid;
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// Returns the process group in the foreground; `None` when there is none, or when this is not our
/// terminal.
pub(crate) fn foreground(tty: &impl AsFd) -> Option<i32> {
    Some(tcgetpgrp(tty).ok()?.as_raw_nonzero().get())
}

/// Puts a process group into the foreground. From the background that works only with SIGTTOU
/// blocked. Safe between fork and exec.
pub(crate) fn set_foreground(tty: impl AsFd, group: i32) -> io::Result<()> {
    let group = Pid::from_raw(group).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(tcsetpgrp(tty, group)?)
}

//! Starts a command as a child of the nursery: in the process group it belongs to, with the signals
//! as the user's process had them, and not outliving its parent.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::message::Spec;
use super::signals::{Before, Mask, check};

/// Which process group a command runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// One of its own.
    Own,
    /// One of its own, in the foreground of the terminal that is standard input.
    Foreground,
    /// That of the owner.
    Join(i32),
}

/// Where and how commands run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Their process group.
    pub(crate) group: Group,
    /// Their signals.
    pub(crate) before: Before,
}

/// Starts it; its pid, which is not reaped here.
///
/// # Errors
/// Whatever fork or exec fails with.
pub(crate) fn spawn(spec: &Spec, place: Place) -> io::Result<u32> {
    let Some((program, args)) = spec.words.split_first() else {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)));
    if let Some(directory) = &spec.directory {
        command.current_dir(directory);
    }
    let (inherited, nursery) = (spec.inherited, std::process::id());
    // SAFETY: `prepare` makes system calls only.
    unsafe { command.pre_exec(move || prepare(place, inherited, nursery)) };
    Ok(command.spawn()?.id())
}

/// Between fork and exec.
fn prepare(place: Place, inherited: Option<i32>, nursery: u32) -> io::Result<()> {
    // From the background, only with SIGTTOU blocked may the terminal be taken.
    Mask::ALL.set()?;
    die_with(nursery)?;
    let group = match place.group {
        Group::Own | Group::Foreground => 0,
        Group::Join(group) => group,
    };
    // SAFETY: no memory is passed.
    check(unsafe { libc::setpgid(0, group) }.into())?;
    if place.group == Group::Foreground {
        // SAFETY: no memory is passed. A terminal that was lost meanwhile is no reason not to run.
        unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpid()) };
    }
    if let Some(fd) = inherited {
        // SAFETY: no memory is passed.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }.into())?;
    }
    place.before.restore()
}

/// SIGKILL when the nursery, whose only thread has forked this, is dead. It may be dead already.
fn die_with(nursery: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into())?;
    // SAFETY: no memory is passed.
    if unsafe { libc::getppid() }.cast_unsigned() == nursery {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

//! Starts a worker as a child of the guardian: in the process group it belongs to, with the signals
//! as the server's process had them, and with a parent-death signal. That signal is sent when the
//! creating *thread* exits, which is the guardian's only one:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n718>.

use std::io;
use std::process::Command;

use super::message::Spec;
use crate::sys::child::BeforeExec;
use crate::sys::signals::Before;

/// The process group that a command runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// One of its own.
    Own,
    /// One of its own, in the foreground of the terminal that is standard input.
    Foreground,
    /// The process group of the owner.
    Shared,
}

/// The process group and the signal state of commands.
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
    let prepared = BeforeExec {
        dies_with: Some(std::process::id()),
        group: (place.group != Group::Shared).then_some(0),
        takes_terminal: place.group == Group::Foreground,
        keeps: spec.inherited.into_iter().collect(),
        signals: Some(place.before),
        closes_streams: false,
    };
    prepared.set(&mut command);
    Ok(command.spawn()?.id())
}

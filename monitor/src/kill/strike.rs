//! A signal to a member of a tree that is being killed: [`sandwich`], and what each refusal means.

use std::os::fd::OwnedFd;

use lifemon_ebpf::{LIVE, ProcessId};
use nix::sys::signal::Signal;

use super::envoy::Envoy;
use super::survivor;
use crate::kernel::sandwich::{self, Sent};
use crate::kernel::{Error, Tracker};
use crate::sys::pidfd;

/// The result of a signal.
#[derive(Debug)]
pub(super) enum Strike {
    /// It was sent, through this descriptor.
    Sent(OwnedFd),
    /// The process has died since it was read: its pid may be anybody's, so nothing was sent.
    Stale,
    /// The process is dying: the signal had nobody to go to.
    Dying,
    /// Whoever has asked for the kill may not end it.
    Foreign,
    /// No descriptor is left to open.
    NoRoom,
    /// It may not be sent.
    Denied(String),
}

/// Sends `signal` to `id`, which was a living member a moment ago, or to nobody. `None` only asks
/// whether one may be sent. `envoy` sends it, if there is one.
pub(super) fn strike(
    tracker: &Tracker,
    id: ProcessId,
    signal: Option<Signal>,
    envoy: Option<&dyn Envoy>,
) -> Result<Strike, Error> {
    let number = signal.map_or(0, |signal| signal as i32);
    let send = |opened: &OwnedFd| match envoy {
        Some(envoy) => envoy.send(id, opened, number),
        None => pidfd::send_signal(opened, number),
    };
    let outcome = sandwich::send(|| pidfd::open(id.pid), || is_live(tracker, id), send)?;
    Ok(match outcome {
        Sent::Through(opened) => Strike::Sent(opened),
        Sent::Stale => Strike::Stale,
        Sent::Unopened(error) => match error.raw_os_error() {
            // Nobody, or (on some kernels) a thread of somebody else.
            Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Strike::Stale,
            Some(libc::EMFILE | libc::ENFILE) => Strike::NoRoom,
            _ => Strike::Denied(format!("cannot be opened: {error}")),
        },
        Sent::Refused(error) => match error.raw_os_error() {
            Some(libc::EPERM) if envoy.is_some() => Strike::Foreign,
            Some(libc::ESRCH) => Strike::Dying,
            _ => Strike::Denied(survivor::denied(&error)),
        },
    })
}

/// Returns whether its record is live. A member without a record (the lineage map was full) is
/// never struck: nothing proves who it is.
fn is_live(tracker: &Tracker, id: ProcessId) -> Result<bool, Error> {
    Ok(tracker
        .record(&id)?
        .is_some_and(|record| record.state == LIVE))
}

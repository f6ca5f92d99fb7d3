//! One signal to exactly one process.
//!
//! The race: a pid can be free and taken again between the look and the signal. The sandwich
//! settles it: the process is a living member (the reading of the map that named it is this first
//! look), the descriptor is opened, the record is *still* live. A record stops being live before
//! its pid can be used again (I2), so the descriptor is that process's, and the signal goes through
//! the descriptor.

use std::os::fd::OwnedFd;

use lifemon_ebpf::{LIVE, ProcessId};
use nix::sys::signal::Signal;

use super::envoy::Envoy;
use super::survivor;
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
    let opened = match pidfd::open(id.pid) {
        Ok(opened) => opened,
        Err(error) => {
            return Ok(match error.raw_os_error() {
                // Nobody, or (on some kernels) a thread of somebody else.
                Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Strike::Stale,
                Some(libc::EMFILE | libc::ENFILE) => Strike::NoRoom,
                _ => Strike::Denied(format!("cannot be opened: {error}")),
            });
        }
    };
    if !is_live(tracker, id)? {
        return Ok(Strike::Stale);
    }
    let number = signal.map_or(0, |signal| signal as i32);
    let sent = match envoy {
        Some(envoy) => envoy.send(id, &opened, number),
        None => pidfd::send_signal(&opened, number),
    };
    match sent {
        Ok(()) => Ok(Strike::Sent(opened)),
        Err(error) if envoy.is_some() && error.raw_os_error() == Some(libc::EPERM) => {
            Ok(Strike::Foreign)
        }
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Strike::Dying),
        Err(error) => Ok(Strike::Denied(survivor::denied(&error))),
    }
}

/// Returns whether its record is live. A member without a record (the lineage map was full) is
/// never struck: nothing proves who it is.
fn is_live(tracker: &Tracker, id: ProcessId) -> Result<bool, Error> {
    Ok(tracker
        .record(&id)?
        .is_some_and(|record| record.state == LIVE))
}

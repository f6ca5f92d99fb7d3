//! A signal to exactly one process, or to nobody.
//!
//! The race: a pid can be free and taken again between the look and the signal. The sandwich
//! settles it: the process is a living member (the reading of the map that named it is this first
//! look), the descriptor is opened, the record is *still* live. A record stops being live before
//! its pid can be used again (I2), so the descriptor is that process's, and the signal goes through
//! the descriptor.

use std::io;

use super::Error;

/// The result of a signal.
#[derive(Debug)]
pub(crate) enum Sent<D> {
    /// It was sent, through this descriptor.
    Through(D),
    /// The process has died since it was read: its pid may be anybody's, so nothing was sent.
    Stale,
    /// The pid could not be opened.
    Unopened(io::Error),
    /// The signal was refused.
    Refused(io::Error),
}

/// Opens a pid, looks whether the record of the process that is meant is live, and sends.
///
/// # Errors
/// When the record cannot be read.
pub(crate) fn send<D>(
    open: impl FnOnce() -> io::Result<D>,
    is_live: impl FnOnce() -> Result<bool, Error>,
    send: impl FnOnce(&D) -> io::Result<()>,
) -> Result<Sent<D>, Error> {
    let opened = match open() {
        Ok(opened) => opened,
        Err(error) => return Ok(Sent::Unopened(error)),
    };
    if !is_live()? {
        return Ok(Sent::Stale);
    }
    Ok(match send(&opened) {
        Ok(()) => Sent::Through(opened),
        Err(error) => Sent::Refused(error),
    })
}

//! The ground floor: system calls, each behind one safe function with a plain name. Nothing here
//! knows what lifemon is for, and nothing above it has `unsafe` for a plain call.
//!
//! [`pidfd`] (a process that cannot be mistaken), [`poll`] (waiting for descriptors), [`signals`]
//! (blocked signals as a descriptor, and sending), [`child`] (fork, exec, wait, subreaper),
//! [`inherited`] (what the runtime changes before `main`), [`descriptor`] (flags and numbers of
//! descriptors), [`terminal`], [`limits`], [`memory`], [`priority`], [`text`] (files of the
//! kernel).
//!
//! What `rustix` or `nix` offer as a safe call is taken from there. What is left to `libc` needs
//! signal numbers that those refuse: libc keeps 32 and 33 for itself, and they are forwarded too.

#[cfg(feature = "cli")]
pub(crate) mod capabilities;
pub(crate) mod child;
pub(crate) mod descriptor;
pub(crate) mod inherited;
pub(crate) mod limits;
pub(crate) mod memory;
#[cfg(feature = "agent")]
pub(crate) mod namespace;
pub(crate) mod peer;
pub(crate) mod pidfd;
pub(crate) mod poll;
pub(crate) mod priority;
#[cfg(feature = "agent")]
pub(crate) mod privilege;
pub(crate) mod runtime;
#[cfg(feature = "agent")]
pub(crate) mod sandbox;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod text;

use std::io;

/// Turns the result of a system call that returned -1 into its error.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

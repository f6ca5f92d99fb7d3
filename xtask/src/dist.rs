//! `cargo xtask dist`: a program of its own, so that what it alone needs is built for it alone.

use std::ffi::OsString;

use anyhow::Result;

use lifemon_tools::command::{self, cargo};

/// Runs it with the arguments that were typed.
pub(crate) fn dist(args: &[OsString]) -> Result<()> {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "lifemon-dist",
        "--",
    ]);
    command.args(args);
    command::run(command)
}

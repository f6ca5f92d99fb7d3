//! `cargo xtask run`: builds, and becomes lifemon as root. Nothing is printed on stdout here, and
//! no process of ours stays between the caller and lifemon.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup;
use lifemon_tools::cargo::lifemon_quietly;
use lifemon_tools::command::shown;
use lifemon_tools::privilege::as_root;

/// Returns only when it failed.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    setup::for_a_build()?;
    let mut lifemon = as_root(&lifemon_quietly()?, &[])?;
    lifemon.args(args);
    become_it(lifemon)
}

/// Replaces this process: signals and exit code are the program's.
pub(crate) fn become_it(mut command: Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", shown(&command)))
}

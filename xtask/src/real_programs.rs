//! `cargo xtask test --real-programs`: builds lifemon and the runner of the table of real programs,
//! and becomes the runner as root. It is no part of `ci`: it fetches what it tries.

use std::ffi::OsString;

use anyhow::Result;

use crate::run::become_it;
use crate::setup;
use lifemon_tools::cargo::{find, lifemon, test_programs};
use lifemon_tools::privilege::as_root;

/// Returns only when it failed.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    setup::for_a_build()?;
    let lifemon = lifemon()?;
    let runner = find(test_programs()?, "real_programs")?;
    let mut command = as_root(&runner, &[("LIFEMON_BIN", lifemon.as_os_str())])?;
    command.args(args);
    become_it(command)
}

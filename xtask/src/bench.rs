//! `cargo xtask bench`: builds lifemon and the benchmarks for release, and becomes the benchmarks
//! as root.

use std::ffi::OsString;

use anyhow::Result;

use crate::run::become_it;
use crate::setup;
use lifemon_tools::cargo::{find, lifemon, test_programs};
use lifemon_tools::privilege::as_root;

/// Returns only when it failed.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    setup::for_a_build()?;
    let lifemon = lifemon()?;
    let bench = find(test_programs()?, "bench")?;
    let mut command = as_root(&bench, &[("LIFEMON_BIN", lifemon.as_os_str())])?;
    command.args(args);
    become_it(command)
}

//! `cargo xtask bench`: builds lifemon and the benchmarks for release, and becomes the benchmarks
//! as root.

use std::ffi::OsString;

use anyhow::Result;

use crate::run::become_it;
use crate::setup::{self, Report};
use lifemon_tools::cargo::{find, lifemon, test_programs};
use lifemon_tools::privilege::as_root;

/// Returns only when it failed.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    setup::setup(Report::Changes)?;
    let lifemon = lifemon()?;
    let bench = find(test_programs()?, "bench")?;
    let mut command = as_root(&bench, &[("LIFEMON_BIN", lifemon.as_os_str())])?;
    command.args(args);
    become_it(command)
}

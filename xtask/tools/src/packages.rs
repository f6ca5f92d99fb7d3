//! Debian's packages, for what the build and the guests need: the commands that install them.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::privilege::as_root;

/// Fetches the lists of packages.
///
/// # Errors
/// When there is no way to be root.
pub fn update() -> Result<Command> {
    apt_get(&["update"])
}

/// Installs packages and what they need, without asking.
///
/// # Errors
/// When there is no way to be root.
pub fn install(packages: &[impl AsRef<str>]) -> Result<Command> {
    let mut command = apt_get(&["install", "-y", "--no-install-recommends"])?;
    command.args(packages.iter().map(AsRef::as_ref));
    Ok(command)
}

fn apt_get(words: &[&str]) -> Result<Command> {
    let mut command = as_root(Path::new("apt-get"), &[])?;
    // A new machine may be updating itself.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(words);
    Ok(command)
}

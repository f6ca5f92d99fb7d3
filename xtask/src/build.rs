//! `cargo xtask build`: builds lifemon for release.

use anyhow::Result;
use lifemon_tools::cargo::lifemon;

use crate::setup;

/// Builds lifemon for release and says where it is.
pub(crate) fn build() -> Result<()> {
    setup::for_a_build()?;
    let lifemon = lifemon()?;
    eprintln!("built {}", lifemon.display());
    Ok(())
}

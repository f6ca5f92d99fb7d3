//! `cargo xtask build`: sets up, and builds lifemon for release.

use anyhow::Result;
use lifemon_tools::cargo::lifemon;

use crate::setup::{self, Report};

/// Builds lifemon for release and says where it is.
pub(crate) fn build() -> Result<()> {
    setup::setup(Report::Changes)?;
    let lifemon = lifemon()?;
    eprintln!("built {}", lifemon.display());
    Ok(())
}

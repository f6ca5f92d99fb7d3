//! The packages of Debian and of Fedora. What is in them stands in monitor/Cargo.toml.

use std::path::PathBuf;

use anyhow::Result;

use crate::VERSION;
use crate::plan::Plan;
use crate::processor::Processor;
use crate::tools::{self, run_said};

/// Writes the Debian package.
pub(crate) fn deb(processor: Processor) -> Result<PathBuf> {
    let file = Plan::Whole.artefact(&format!("lifemon_{VERSION}-1_{}.deb", processor.debian()));
    let mut command = tools::tool("cargo-deb")?;
    command.args(["--package", "lifemon", "--no-build", "--no-strip"]);
    command.args(["--target", &processor.target(), "--output"]);
    command.arg(std::env::current_dir()?.join(&file));
    run_said(command)?;
    Ok(file)
}

/// Writes the package of Fedora and its kin.
pub(crate) fn rpm(processor: Processor) -> Result<PathBuf> {
    let file = Plan::Whole.artefact(&format!("lifemon-{VERSION}-1.{}.rpm", processor.rust()));
    let mut command = tools::tool("cargo-generate-rpm")?;
    command.args(["--package", "monitor", "--target", &processor.target()]);
    command.arg("--output").arg(&file);
    run_said(command)?;
    Ok(file)
}

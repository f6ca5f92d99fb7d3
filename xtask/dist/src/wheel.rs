//! The wheels, and with them the binaries for all artefacts, linked for an old glibc. The list of
//! all that is in the binary comes from there as well.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::VERSION;
use crate::plan::{Plan, here};
use crate::processor::Processor;
use crate::tools::{self, run_said};
use lifemon_tools::command::run;

/// The oldest glibc that the binary starts with, as wheels name it.
const GLIBC: &str = "manylinux_2_17";

/// Builds the binary and its wheel.
pub(crate) fn build(plan: Plan, processor: Processor) -> Result<PathBuf> {
    let target = processor.target();
    if plan == Plan::Whole && Processor::here() != Some(processor) {
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", &target]);
        run(rustup)?;
    }
    let mut maturin = tools::tool("maturin")?;
    maturin.args(["build", "--release", "--out"]);
    maturin.arg(std::env::current_dir()?.join(plan.directory()));
    match plan {
        Plan::Whole => {
            maturin.args(["--strip", "--zig", "--target", &target]);
            maturin.args(["--compatibility", GLIBC]);
        }
        // For the glibc of this system.
        Plan::Quick => {
            maturin.args(["--compatibility", "linux"]);
        }
    }
    maturin.current_dir("python");
    run_said(maturin)?;
    find(plan, processor)
}

/// Returns the wheel for a processor.
pub(crate) fn find(plan: Plan, processor: Processor) -> Result<PathBuf> {
    let ending = format!("_{}.whl", processor.rust());
    let entries =
        fs::read_dir(plan.directory()).context("there is nothing yet: run `cargo xtask dist`")?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names.find(|name| name.ends_with(&ending));
    Ok(plan.artefact(&name.with_context(|| {
        let processor = processor.rust();
        format!("no wheel for {processor}: run `cargo xtask dist`")
    })?))
}

/// Writes the list of all that is in the binary, which the wheel carries.
pub(crate) fn bill_of_materials() -> Result<PathBuf> {
    let plan = Plan::Whole;
    let directory = plan.artefact("sbom");
    let mut unzip = Command::new(tools::python());
    unzip.args(["-m", "zipfile", "-e"]);
    unzip.arg(find(plan, here()?)?).arg(&directory);
    run(unzip)?;
    let inside = format!("lifemon-{VERSION}.dist-info/sboms/lifemon.cyclonedx.json");
    let file = plan.artefact(&format!("lifemon-{VERSION}.cyclonedx.json"));
    fs::copy(directory.join(inside), &file).context("the wheel has no list of what is in it")?;
    fs::remove_dir_all(directory)?;
    Ok(file)
}

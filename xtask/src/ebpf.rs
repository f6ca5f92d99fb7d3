//! `cargo xtask ebpf`: builds the kernel half from source and writes the committed object. The
//! tests check here that the object is of the sources.

use std::fs;

use anyhow::{Context as _, Result};

use crate::setup::{self, Report};
use lifemon_tools::command::{self, cargo};
use lifemon_tools::kernel_half::{BUILD_ENV, RECORD};
use lifemon_tools::made_with::MadeWith;
use lifemon_tools::toolchain;

/// Writes the object and its record.
pub(crate) fn write() -> Result<()> {
    setup::setup(Report::Changes)?;
    object("write")
}

/// How the kernel half gets into the build that is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// As it is committed: it is what the sources make.
    Committed,
    /// Built here: these tools make other bytes of the same sources.
    Built,
}

/// Builds the kernel half with the tools that the record names, and fails when the bytes differ.
/// Where other tools are installed, the tests are of what these make.
pub(crate) fn check() -> Result<Source> {
    let toolchain = toolchain::choose().context("no toolchain: run `cargo xtask setup`")?;
    let found = MadeWith::find(&toolchain)?;
    let record = fs::read_to_string(format!("monitor/{RECORD}"))
        .with_context(|| format!("no monitor/{RECORD}: run `cargo xtask ebpf`"))?;
    let recorded = MadeWith::read(&record);
    if recorded.as_ref() == Some(&found) {
        object("check")?;
        return Ok(Source::Committed);
    }
    println!(
        "not compared: monitor/{RECORD} names other tools than are installed here ({found:?}); \
         built from source with these ({BUILD_ENV}=1)"
    );
    Ok(Source::Built)
}

fn object(task: &str) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "lifemon-object"]);
    command.args(["--", task]);
    command::run(command)
}

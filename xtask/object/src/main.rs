//! Makes the committed object of the kernel half: compiles it, strips it, and records from what and
//! with what. Apart from xtask, which a user builds first and which needs none of this.

mod stack;
mod strip;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lifemon_tools::kernel_half::{self, LITTLE_ENDIAN, OBJECT, RECORD};
use lifemon_tools::made_with::MadeWith;
use lifemon_tools::toolchain;

/// The committed object of the kernel half.
#[derive(Parser)]
enum Task {
    /// Writes the object and its record
    Write,
    /// Fails if the sources do not make the committed object
    Check,
}

fn main() -> ExitCode {
    match run(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    let root = workspace()?;
    let object_file = root.join("monitor").join(OBJECT);
    let record_file = root.join("monitor").join(RECORD);
    let (object, record) = make(&root)?;
    let committed = fs::read(&object_file).unwrap_or_default();
    let is_same = object == committed;
    match task {
        Task::Write => {
            let directory = object_file.parent().context("a file is in a directory")?;
            fs::create_dir_all(directory)?;
            fs::write(&object_file, &object)?;
            fs::write(&record_file, record)?;
            let change = if is_same { "unchanged" } else { "written" };
            eprintln!("monitor/{OBJECT}: {change}, {} bytes", object.len());
        }
        Task::Check => {
            ensure!(
                is_same,
                "monitor/{OBJECT} is not what monitor-ebpf compiles to: run `cargo xtask ebpf`, \
                 and commit what it writes"
            );
            eprintln!("monitor/{OBJECT} is what monitor-ebpf compiles to, byte for byte");
        }
    }
    Ok(())
}

/// Returns the object and its record, made from the sources.
fn make(root: &Path) -> Result<(Vec<u8>, String)> {
    let toolchain = toolchain::choose()
        .context("no toolchain with rust-src for the kernel half: run `cargo xtask setup`")?;
    let made_with = MadeWith::find(&toolchain)?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let target_dir = root.join("target").join("kernel-half");
    let built = kernel_half::compile(&cargo, &toolchain, root, LITTLE_ENDIAN, &target_dir)?;
    for line in &built.warnings {
        eprintln!("{line}");
    }
    let object = fs::read(&built.object)
        .with_context(|| format!("the build made no {}", built.object.display()))?;
    stack::check(&object)?;
    let record = made_with.record(&kernel_half::checksum(root)?);
    Ok((strip::debug_sections(&object)?, record))
}

fn workspace() -> Result<PathBuf> {
    // Of this crate, when cargo built it; the checkout may have another path than then.
    let here = env::var_os("CARGO_MANIFEST_DIR").context("run by `cargo xtask` only")?;
    let root = Path::new(&here).ancestors().nth(2);
    Ok(root.context("xtask/object is below the root")?.to_owned())
}

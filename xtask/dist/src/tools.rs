//! The programs that make the artefacts, installed below target/ at their first use: nothing of
//! them is needed to build or to test lifemon.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::plan::Plan;
use lifemon_tools::command::{cargo, run, shown};

/// Their directory.
const TOOLS: &str = "target/dist-tools";

/// Python's: the linker for old versions of glibc, and what makes wheels.
const OF_PYTHON: [&str; 2] = ["maturin==1.16.0", "ziglang==0.17.1"];

/// Rust's, with what they are as commands of cargo.
const OF_RUST: [(&str, &str); 2] = [("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1")];

/// Installs what the wheel is made with. It builds the binary for all the others.
pub(crate) fn of_python(plan: Plan) -> Result<()> {
    let python = python();
    if !python.exists() {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", TOOLS]);
        run_said(venv)?;
    }
    // Without the linker, which is large, where nothing is linked for another glibc.
    let wanted = match plan {
        Plan::Whole => &OF_PYTHON[..],
        Plan::Quick => &OF_PYTHON[..1],
    };
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet"]).args(wanted);
    run_said(pip)
}

/// Installs what the packages are made with.
pub(crate) fn of_rust() -> Result<()> {
    for (name, version) in OF_RUST {
        if Path::new(TOOLS).join("bin").join(name).exists() {
            continue;
        }
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--root", TOOLS, name]);
        install.args(["--version", version]);
        run_said(install)?;
    }
    Ok(())
}

/// Returns Python with these tools.
pub(crate) fn python() -> PathBuf {
    Path::new(TOOLS).join("bin/python")
}

/// Returns a tool, which finds the others.
pub(crate) fn tool(name: &str) -> Result<Command> {
    let bin = std::env::current_dir()?.join(TOOLS).join("bin");
    let mut path = OsString::from(&bin);
    path.push(":");
    path.push(std::env::var_os("PATH").context("PATH is not set")?);
    let mut command = Command::new(bin.join(name));
    command.env("PATH", path);
    Ok(command)
}

/// Runs a command that takes its time, and says which.
pub(crate) fn run_said(command: Command) -> Result<()> {
    eprintln!("{}", shown(&command));
    run(command)
}

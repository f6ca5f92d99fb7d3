//! `cargo xtask test --gpu`: builds what the tests run, and becomes the tests with a real GPU as root.
//! They are no part of `ci`: few machines have a GPU.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::run::become_it;
use crate::setup;
use lifemon_tools::cargo::for_tests;
use lifemon_tools::privilege::as_root;

/// Ends with an error where `PyTorch` has no GPU.
const HAS_GPU: &str = "import torch; assert torch.cuda.is_available(), 'no GPU'";

/// Returns only when it failed.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    // Before a long build; the tests would all be skipped.
    let found = Command::new("python3").args(["-c", HAS_GPU]).output();
    let found = found.context("python3, which these tests need, does not start")?;
    ensure!(
        found.status.success(),
        "these tests need a GPU of NVIDIA, and a python3 with `PyTorch` that can use it: {}",
        String::from_utf8_lossy(&found.stderr).trim()
    );
    setup::for_a_build()?;
    let built = for_tests(|_| {})?;
    let variables = [("LIFEMON_BIN", built.lifemon.as_os_str())];
    let mut command = as_root(&built.gpu.path, &variables)?;
    // One after the other: each counts the memory of the whole GPU.
    command.args(["--test-threads", "1", "--show-output"]);
    command.args(args).current_dir(&built.gpu.package_dir);
    become_it(command)
}

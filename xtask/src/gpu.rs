//! `cargo xtask test --gpu`: builds what the tests run, and becomes the tests with a real GPU as
//! root. They are no part of `ci`: few machines have a GPU.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::run::become_it;
use crate::setup;
use lifemon_tools::cargo::for_tests;
use lifemon_tools::privilege::as_root;

/// Ends with an error where `PyTorch` has no GPU.
const HAS_GPU: &str = "import torch; assert torch.cuda.is_available(), 'no GPU'";

/// Returns only when it failed.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    // Before a long build; and as the tests run, which is as root.
    check("nvidia-smi", &["-L"])?;
    check("python3", &["-c", HAS_GPU])?;
    setup::for_a_build()?;
    let built = for_tests(|_| {})?;
    let variables = [
        ("LIFEMON_BIN", built.lifemon.as_os_str()),
        // A test that finds no GPU fails then.
        ("LIFEMON_TEST_GPU", OsStr::new("1")),
    ];
    let mut command = as_root(&built.gpu.path, &variables)?;
    // One after the other: each counts the memory of the whole GPU.
    command.args(["--test-threads", "1", "--show-output"]);
    command.args(args).current_dir(&built.gpu.package_dir);
    become_it(command)
}

/// Runs a program that the tests need, as root.
fn check(program: &str, words: &[&str]) -> Result<()> {
    let found = as_root(Path::new(program), &[])?.args(words).output();
    let found =
        found.with_context(|| format!("{program}, which these tests need, does not start"))?;
    ensure!(
        found.status.success(),
        "these tests need a GPU of NVIDIA, nvidia-smi, and a python3 with PyTorch that can use the \
         GPU, all of them found by root; {program}: {}",
        String::from_utf8_lossy(&found.stderr).trim()
    );
    Ok(())
}

//! `cargo xtask test`: format, lints, unit tests without privileges, then the end-to-end tests as root.
//! All are built by the caller, at once and as lifemon is released, and only run as root.

use std::ffi::{OsStr, OsString};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Result, bail, ensure};

use crate::build::{self, Executable, ForTests};
use crate::command::{self, cargo, check, run_lines};
use crate::libtest::Counts;
use crate::privilege::as_root;
use crate::setup::{self, Report};
use crate::stage::Stages;
use crate::vmtest;

/// Which machines the end-to-end tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// This one alone.
    Running,
    /// This one, and emulated ones with other kernels.
    All,
}

/// Runs all stages; `args` go to every test executable.
pub(crate) fn test(args: &[OsString], kernels: Kernels) -> Result<()> {
    let mut stages = Stages::default();
    let result = all(&mut stages, args, kernels);
    stages.close();
    result
}

/// The stages of a test run, without the closing lines.
pub(crate) fn all(stages: &mut Stages, args: &[OsString], kernels: Kernels) -> Result<()> {
    stages.stage("set-up", |_| setup::setup(Report::Everything))?;
    if kernels == Kernels::Running {
        on_this_kernel(stages, args)?;
        println!("left out, as asked: the tests on other kernels");
        return Ok(());
    }
    thread::scope(|scope| {
        // The network is slow, and the processors have enough to do meanwhile.
        let fetched = scope.spawn(vmtest::fetch);
        let built = on_this_kernel(stages, args)?;
        stages.stage("other kernels", |counts| {
            let fetched = fetched.join().unwrap_or_else(|panic| resume_unwind(panic));
            vmtest::stage(fetched, built, counts)
        })
    })
}

/// All that needs no other machine.
fn on_this_kernel(stages: &mut Stages, args: &[OsString]) -> Result<ForTests> {
    stages.stage("format", |_| run_cargo("fmt --all --check"))?;
    stages.stage("lints", |_| {
        // In the profile of the build after it: what both run is compiled once.
        run_cargo(
            "clippy --release --workspace --all-targets --features lifemon-tests/privileged -- -D \
             warnings",
        )
    })?;
    let built = stages.stage("build", |_| build::for_tests(|_| {}))?;
    stages.stage("unit tests", |counts| unit_tests(&built.unit, args, counts))?;
    stages.stage("end-to-end tests", |counts| {
        end_to_end_tests(&built.end_to_end, &built.lifemon, args, counts)
    })?;
    Ok(built)
}

fn run_cargo(line: &str) -> Result<()> {
    let mut command = cargo();
    command.args(line.split(' '));
    command::run(command)
}

fn unit_tests(tests: &[Executable], args: &[OsString], counts: &mut Counts) -> Result<()> {
    let command = |test: &Executable| {
        eprintln!("running the unit tests of {}", test.name);
        let mut command = Command::new(&test.path);
        command.env("CARGO_MANIFEST_DIR", &test.package_dir);
        command.current_dir(&test.package_dir);
        Ok(command)
    };
    run_each(tests, command, args, counts)
}

/// Runs the tests that need root.
fn end_to_end_tests(
    tests: &[Executable],
    lifemon: &Path,
    args: &[OsString],
    counts: &mut Counts,
) -> Result<()> {
    let command = |test: &Executable| {
        eprintln!("running {} as root", test.name);
        end_to_end(test, lifemon)
    };
    run_each(tests, command, args, counts)
}

/// Runs them all, also when one has failed.
fn run_each(
    tests: &[Executable],
    command: impl Fn(&Executable) -> Result<Command>,
    args: &[OsString],
    counts: &mut Counts,
) -> Result<()> {
    ensure!(!tests.is_empty(), "no tests were built");
    let mut failed = Vec::new();
    for test in tests {
        let mut command = command(test)?;
        command.args(args);
        if let Err(error) = run_counted(&mut command, counts) {
            eprintln!("{error:#}");
            failed.push(test.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// A test executable where and as cargo would run it.
fn end_to_end(test: &Executable, lifemon: &Path) -> Result<Command> {
    let package_dir = test.package_dir.as_os_str();
    let variables: [(&str, &OsStr); 2] = [
        ("LIFEMON_BIN", lifemon.as_os_str()),
        ("CARGO_MANIFEST_DIR", package_dir),
    ];
    let mut command = as_root(&test.path, &variables)?;
    command.current_dir(package_dir);
    Ok(command)
}

/// Shows the output while counting. One that dies without a verdict counts as a failed test.
fn run_counted(command: &mut Command, counts: &mut Counts) -> Result<()> {
    let mut own = Counts::default();
    let status = run_lines(command, |line| {
        println!("{line}");
        if let Some(result) = Counts::parse(line) {
            own += result;
        }
    })?;
    if !status.success() && own.failed == 0 {
        own.failed = 1;
    }
    *counts += own;
    check(command, status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn what_dies_without_a_verdict_counts_as_failed() {
        let mut counts = Counts::default();
        assert!(run_counted(&mut script("kill -9 $$"), &mut counts).is_err());
        assert_eq!(counts.to_string(), "0 passed, 1 failed");
    }

    #[test]
    fn verdicts_are_summed() -> Result<()> {
        let verdict = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        let mut counts = Counts::default();
        run_counted(&mut script(&format!("{verdict}; {verdict}")), &mut counts)?;
        assert_eq!(counts.to_string(), "4 passed, 0 failed");
        Ok(())
    }
}

//! `cargo xtask test`: format, lints, unit tests without privileges, then the end-to-end tests as
//! root. All are built by the caller, at once and as lifemon is released, and only run as root.

use std::ffi::{OsStr, OsString};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::dist;
use crate::ebpf::{self, Source};
use crate::python;
use crate::setup::{self, Report};
use crate::stage::Stages;
use lifemon_tools::cargo::{Executable, ForTests, for_tests};
use lifemon_tools::command::{self, cargo, run_lines};
use lifemon_tools::kernel_half::BUILD_ENV;
use lifemon_tools::libtest::{Counts, Module, options};
use lifemon_tools::privilege::as_root;
use lifemon_vmtest as vmtest;

/// How long the end-to-end tests of one module may take: ten times what the longest takes on a
/// machine that does nothing else. They wait for those of other checkouts, which use the same
/// kernel.
const MODULE_LIMIT: Duration = Duration::from_mins(15);

/// What `timeout` ends with where the limit has passed, and where it had to kill.
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 137;

/// Which machines the end-to-end tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// This one alone.
    Running,
    /// This one, and emulated ones with other kernels.
    All,
}

/// Which Pythons the tests of the Python package run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pythons {
    /// The one that is first on `PATH`.
    First,
    /// Each that is found.
    All,
}

/// Runs all stages; `args` choose tests, or say how they are run.
pub(crate) fn test(args: &[OsString], kernels: Kernels, pythons: Pythons) -> Result<()> {
    let mut stages = Stages::default();
    let result = all(&mut stages, args, kernels, pythons);
    stages.close();
    result
}

/// Runs the stages of a test run, without the closing lines.
pub(crate) fn all(
    stages: &mut Stages,
    args: &[OsString],
    kernels: Kernels,
    pythons: Pythons,
) -> Result<()> {
    stages.stage("set-up", |_| setup::setup(Report::Everything))?;
    if kernels == Kernels::Running {
        on_this_kernel(stages, args, pythons)?;
        println!("left out, as asked: the tests on other kernels");
        return Ok(());
    }
    thread::scope(|scope| {
        // The network is slow, and the processors have enough to do meanwhile.
        let fetched = scope.spawn(vmtest::fetch);
        let built = on_this_kernel(stages, args, pythons)?;
        stages.stage("other kernels", |counts| {
            let fetched = fetched.join().unwrap_or_else(|panic| resume_unwind(panic));
            vmtest::stage(fetched, built, counts)
        })
    })
}

/// Runs all that needs no other machine.
fn on_this_kernel(stages: &mut Stages, args: &[OsString], pythons: Pythons) -> Result<ForTests> {
    stages.stage("format", |_| run_cargo("fmt --all --check"))?;
    stages.stage("lints", |_| {
        // In the profile of the build after it: what both run is compiled once.
        run_cargo(
            "clippy --release --workspace --all-targets --features lifemon-tests/privileged -- -D \
             warnings",
        )
    })?;
    let source = stages.stage("kernel half", |_| ebpf::check())?;
    let built = stages.stage("build", |_| {
        for_tests(|cargo| {
            if source == Source::Built {
                cargo.env(BUILD_ENV, "1");
            }
        })
    })?;
    stages.stage("unit tests", |counts| unit_tests(&built.unit, args, counts))?;
    stages.stage("library", library)?;
    stages.stage("end-to-end tests", |counts| {
        end_to_end_tests(&built.end_to_end, &built.lifemon, args, counts)
    })?;
    if args.is_empty() {
        stages.stage("Python package", |counts| {
            python::test(&built.lifemon, counts)
        })?;
    }
    if pythons == Pythons::All {
        stages.stage("other Pythons", |counts| {
            python::test_others(&built.lifemon, counts)
        })?;
    }
    if args.is_empty() {
        stages.stage("archive and wheel", |_| dist::dist(&["--quick".into()]))?;
    }
    Ok(built)
}

fn run_cargo(line: &str) -> Result<()> {
    let mut command = cargo();
    command.args(line.split(' '));
    command::run(command)
}

/// Checks the library as others use it: without what the binary needs, and by its examples.
fn library(counts: &mut Counts) -> Result<()> {
    for features in ["", " --features gpu"] {
        run_cargo(&format!(
            "clippy --release -p lifemon --lib --no-default-features{features} -- -D warnings"
        ))?;
    }
    let mut examples = cargo();
    examples.args(["test", "--release", "--doc", "-p", "lifemon"]);
    let run = ("the examples of lifemon".to_owned(), Ok(examples));
    run_each([run].into_iter(), counts)
}

fn unit_tests(tests: &[Executable], args: &[OsString], counts: &mut Counts) -> Result<()> {
    ensure!(!tests.is_empty(), "no unit tests were built");
    let runs = tests.iter().map(|test| {
        let mut command = Command::new(&test.path);
        command.env("CARGO_MANIFEST_DIR", &test.package_dir);
        command.current_dir(&test.package_dir).args(args);
        (format!("the unit tests of {}", test.name), Ok(command))
    });
    run_each(runs, counts)
}

/// Runs the tests that need root: each module in a process of its own, and all of them as root.
/// Within a module libtest runs them side by side. A runner such as cargo-nextest would make it a
/// process for each test, but the guests of other kernels have none, so that a test could not rely
/// on it, and one more program would have to be installed first.
fn end_to_end_tests(
    test: &Executable,
    lifemon: &Path,
    args: &[OsString],
    counts: &mut Counts,
) -> Result<()> {
    let modules = Module::list(&test.path, args)?;
    if modules.is_empty() {
        println!("no end-to-end test is called so");
    }
    let runs = modules.iter().map(|module| {
        let command = end_to_end(test, lifemon).map(|mut command| {
            command.args(options(args)).args(module.arguments());
            command
        });
        (format!("the end-to-end tests of {}", module.name), command)
    });
    run_each(runs, counts)
}

/// Runs them all, also when one has failed.
fn run_each(
    runs: impl Iterator<Item = (String, Result<Command>)>,
    counts: &mut Counts,
) -> Result<()> {
    let mut failed = Vec::new();
    for (name, command) in runs {
        eprintln!("running {name}");
        let run = run_counted(&mut command?, counts)?;
        if !run.status.success() {
            let how = match run.status.code() {
                Some(TIMED_OUT | KILLED) => format!("did not end in {} s", MODULE_LIMIT.as_secs()),
                _ => format!("failed ({})", run.status),
            };
            eprintln!("{name}: {how}");
            failed.push(format!("{name}: {how}"));
            failed.extend(run.failed.iter().map(|test| format!("  {test}")));
        }
    }
    // At the end of the output, which is what is left of one that is too long to be kept.
    if !failed.is_empty() {
        bail!("failed:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Returns the command for the end-to-end tests where and as cargo would run them, within a limit:
/// what hangs is ended. The limit is kept by a program that is root as they are, because nobody
/// else may end them.
fn end_to_end(test: &Executable, lifemon: &Path) -> Result<Command> {
    let package_dir = test.package_dir.as_os_str();
    let variables: [(&str, &OsStr); 2] = [
        ("LIFEMON_BIN", lifemon.as_os_str()),
        ("CARGO_MANIFEST_DIR", package_dir),
    ];
    let mut command = as_root(Path::new("timeout"), &variables)?;
    // In the foreground: an interrupt at the terminal is for the tests too.
    command.args(["--foreground", "--kill-after=10"]);
    command.arg(MODULE_LIMIT.as_secs().to_string());
    command.arg(&test.path).current_dir(package_dir);
    Ok(command)
}

/// How one test executable ended.
struct Run {
    status: ExitStatus,
    /// The tests that failed, each followed by the messages of the panics in it.
    failed: Vec<String>,
}

/// Shows the output while counting. One that dies without a verdict counts as a failed test.
fn run_counted(command: &mut Command, counts: &mut Counts) -> Result<Run> {
    let mut own = Counts::default();
    let mut failed = Vec::new();
    let (mut is_failure, mut is_message) = (false, false);
    let status = run_lines(command, |line| {
        println!("{line}");
        if let Some(result) = Counts::parse(line) {
            own += result;
        }
        // A panic is no failure where it was expected: those come before.
        is_failure |= line == "failures:";
        if !is_failure {
            return;
        }
        if let Some(test) = line.strip_prefix("---- ") {
            failed.push(test.trim_end_matches(" stdout ----").to_owned());
        } else if is_message && let Some(test) = failed.last_mut() {
            *test = format!("{test}: {line}");
        }
        is_message = line.starts_with("thread '") && line.contains("panicked at");
    })?;
    if !status.success() && own.failed == 0 {
        own.failed = 1;
    }
    *counts += own;
    Ok(Run { status, failed })
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
        let run = run_counted(&mut script("kill -9 $$"), &mut counts);
        assert!(run.is_ok_and(|run| !run.status.success()));
        assert_eq!(counts.to_string(), "0 passed, 1 failed");
    }

    #[test]
    fn what_failed_is_said_once_more_at_the_end() {
        let output = "\
---- fine stdout ----
thread 'fine' (1) panicked at a.rs:1:1:
expected

failures:

---- kill::one stdout ----

thread 'kill::one' (2) panicked at b.rs:2:2:
nobody is left
note: more

failures:
    kill::one
test result: FAILED. 1 passed; 1 failed; 0 ignored";
        let text = format!("echo \"{output}\"; exit 101");
        let runs = [("the tests of kill".to_owned(), Ok(script(&text)))];
        let mut counts = Counts::default();
        let error = run_each(runs.into_iter(), &mut counts).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed:\nthe tests of kill: failed (exit status: 101)\n  kill::one: nobody is left"
        );
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

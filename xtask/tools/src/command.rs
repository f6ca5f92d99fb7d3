//! Running other programs: cargo, git and the like. Their output goes to stderr unless a caller
//! takes it, because stdout belongs to what the user asked for.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

/// Returns the cargo that runs us: the toolchain's own, whatever else is on `PATH`.
#[must_use]
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Runs a command, and fails when it does.
///
/// # Errors
/// When it cannot be started, or does not succeed.
pub fn run(mut command: Command) -> Result<()> {
    let status = command
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("cannot start `{}`", shown(&command)))?;
    check(&command, status)
}

/// Runs a command with each line of its stdout given to `each_line`.
///
/// # Errors
/// When it cannot be started, or its output cannot be read.
pub fn run_lines(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if let Some(stdout) = child.stdout.take() {
        // Tests may print anything: bytes, not text.
        for line in BufReader::new(stdout).split(b'\n') {
            each_line(&String::from_utf8_lossy(&line?));
        }
    }
    Ok(child.wait()?)
}

/// Returns what a command prints, when it can be run and succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Turns a failed status into an error that shows the command.
///
/// # Errors
/// When the status is one of failure.
pub fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Shows the command as it would be typed, without the directory of the program.
#[must_use]
pub fn shown(command: &Command) -> String {
    let mut text = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _infallible = write!(text, "{}={} ", name.display(), value.display());
        }
    }
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let _infallible = write!(text, "{}", name.display());
    for arg in command.get_args() {
        let _infallible = write!(text, " {}", arg.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("some/where/cargo");
        command.args(["install", "it"]).env("PREFIX", "here");
        assert_eq!(shown(&command), "PREFIX=here cargo install it");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = run(Command::new("false")).unwrap_err();
        assert!(error.to_string().starts_with("`false` failed"), "{error}");
    }

    #[test]
    fn lines_are_delivered_and_the_status_with_them() -> Result<()> {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; printf two; exit 3"]);
        let status = run_lines(&mut command, |line| lines.push(line.to_owned()))?;
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.code(), Some(3));
        Ok(())
    }
}

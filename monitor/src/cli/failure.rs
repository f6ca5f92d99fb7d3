//! Why a command was not done: the message, and the exit code that the contract has for it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory as _;

#[cfg(feature = "agent")]
use super::refusal;
use super::{Cli, log, run, select};
use crate::kernel;
use crate::kill::KillError;
use crate::report::out::{self, WriteError};

/// No such process, or no longer that one: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoSuchProcess(pub String);

/// A usage error: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}; try --help")]
pub struct Usage(pub String);

/// Prints what is wrong with what was typed, or the help that was asked for. A wrong value is one
/// line; where words are missing or unknown, the usage belongs to the answer.
#[must_use]
pub fn refuse_usage(error: &clap::Error) -> ExitCode {
    let code = match error.exit_code() {
        0 => 0,
        // The other codes are those of the command.
        _ if is_run(std::env::args_os()) => run::FAILED,
        _ => 2,
    };
    if error.kind() != clap::error::ErrorKind::ValueValidation {
        let _ = error.print();
        return ExitCode::from(code);
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    out::tell(&format!("lifemon: {line}; try --help"));
    ExitCode::from(code)
}

/// Returns whether these words, which are wrong somewhere, are for the command `run`.
fn is_run(words: impl IntoIterator<Item = OsString>) -> bool {
    let found = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(words);
    found.is_ok_and(|found| found.subcommand_name() == Some("run"))
}

/// Prints why a command failed, and picks the exit code.
#[must_use]
pub fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(WriteError::Closed) = error.downcast_ref() {
        return ExitCode::SUCCESS;
    }
    out::tell(&format!("lifemon: {}", chain(error)));
    ExitCode::from(code_of(error))
}

/// Returns the whole chain in one line, without what a cause repeats.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<NoSuchProcess>().is_some() {
        return 4;
    }
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    #[cfg(feature = "agent")]
    if error.downcast_ref::<refusal::NoAgent>().is_some() {
        return 3;
    }
    if let Some(error) = error.downcast_ref::<kernel::Error>() {
        return code_of_kernel(error);
    }
    match error.downcast_ref::<KillError>() {
        Some(KillError::Kernel(error)) => return code_of_kernel(error),
        Some(KillError::Refused(_)) => return 1,
        Some(KillError::Unsendable(_)) => return 2,
        Some(KillError::NotPrepared(_)) => return 3,
        None => {}
    }
    let cannot_run = error.downcast_ref::<kernel::Refusal>().is_some()
        || error.downcast_ref::<select::NoKubelet>().is_some()
        || error.downcast_ref::<log::NoRecorder>().is_some();
    if cannot_run { 3 } else { 1 }
}

fn code_of_kernel(error: &kernel::Error) -> u8 {
    match error {
        kernel::Error::NoProcess(_) => 4,
        kernel::Error::NoSlot
        | kernel::Error::NoLayer
        | kernel::Error::Locked { .. }
        | kernel::Error::Interrupted { .. } => 1,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_for_run_are_known_by_its_name() {
        let is_run = |words: &[&str]| is_run(words.iter().map(OsString::from));
        for words in [
            &["lifemon", "run"][..],
            &["lifemon", "-v", "run", "--no-such-option", "--", "x"],
            &["lifemon", "-o", "json", "run", "--grace", "x", "--", "x"],
        ] {
            assert!(is_run(words), "{words:?}");
        }
        for words in [
            &["lifemon"][..],
            &["lifemon", "kill", "run", "--no-such-option"],
            &["lifemon", "-o", "run"],
        ] {
            assert!(!is_run(words), "{words:?}");
        }
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        let code = |error: anyhow::Error| code_of(&error);
        assert_eq!(code(NoSuchProcess("x".into()).into()), 4);
        assert_eq!(code(kernel::Error::NoProcess("1".into()).into()), 4);
        assert_eq!(code(kernel::Refusal::NoBtf.into()), 3);
        assert_eq!(
            code(kernel::Error::Refused(kernel::Refusal::NoBtf).into()),
            3
        );
        assert_eq!(code(anyhow::anyhow!("other")), 1);
    }
}

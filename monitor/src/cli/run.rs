//! `lifemon run`: runs a command and kills what it leaves behind. The work is done in `supervise`.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kill::parse_signal;
use super::{Code, parse_duration};
use crate::ProcessId;
use crate::kernel::Tracker;
use crate::process::Signal;
use crate::report::{self, out};
use crate::supervise::{self, RunOptions};
use crate::sys::signals::{die_of, is_forwarded};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lifemon run -- ./serve.sh                    what it leaves behind is killed
  lifemon run --grace 2s -- pytest -n 8        after two seconds to end by itself
  lifemon run --json report.json -- make       with a report of what was left
  lifemon run --keep-orphans=tmux -- ./start   all of that but tmux, and what runs in it
  lifemon run --rewrite TERM=QUIT -- nginx     asked to end, it gets SIGQUIT

The command runs in the process group of lifemon, as it would alone; a signal to lifemon alone is
handed on to it. With privileges the rest is killed through eBPF, otherwise through a subreaper,
which finds everything that is reparented to lifemon.
Exit codes: the command's own, or lifemon dies of the signal that ended the command (128 and its
number with --exit-code, of SIGKILL, and as the first process of a pid namespace); 125 lifemon has
failed, or a usage error, 126 the command may not run, 127 there is no such command.")]
pub struct Args {
    /// Time that processes left behind have to end by themselves
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    grace: Duration,
    /// Sent first to what is left behind
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: Signal,
    /// Leave the processes that are left behind alive, and only report them; with =PATTERN, those
    /// whose name or command line matches, with what is below them
    #[arg(long, value_name = "PATTERN", num_args = 0..=1, require_equals = true,
        default_missing_value = "", value_parser = parse_pattern)]
    keep_orphans: Option<String>,
    /// Write a report to this file when the command has ended
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Give the command a process group of its own, and hand on each signal to all of it
    #[arg(short, long)]
    group: bool,
    /// Hand on another signal instead of this one, or none for 0 (repeatable); the command gets a
    /// process group of its own
    #[arg(long, value_name = "SIGNAL=SIGNAL", value_parser = parse_rewrite)]
    rewrite: Vec<(Signal, Option<Signal>)>,
    /// End with 0 instead of this exit code (repeatable); 128 and a signal for a command that dies
    /// of it
    #[arg(long, value_name = "CODE")]
    remap_exit: Vec<u8>,
    /// End with 128 and the signal instead of dying of the signal that ended the command
    #[arg(long)]
    exit_code: bool,
    /// Get this signal, which is handed on, when the process that started lifemon ends
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    parent_death_signal: Option<Signal>,
    /// Run the command in this directory
    #[arg(long, value_name = "DIRECTORY")]
    chdir: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

/// Checks a regular expression.
fn parse_pattern(text: &str) -> Result<String, String> {
    let wrong = |error: regex::Error| {
        let error = error.to_string();
        error.lines().last().unwrap_or_default().to_owned()
    };
    regex::bytes::Regex::new(text).map_err(wrong)?;
    Ok(text.to_owned())
}

/// Exit code of what lifemon itself could not do, usage errors included.
pub(super) const FAILED: u8 = 125;

/// Runs it. All of its failures have codes of their own. Where the command died of a signal, this
/// process does as well, and this does not return.
pub(super) fn run(args: &Args) -> Code {
    let options = RunOptions {
        words: args.words.clone(),
        signal: args.signal,
        grace: args.grace,
        keep_orphans: args.keep_orphans.as_deref() == Some(""),
        keep_matching: args
            .keep_orphans
            .clone()
            .filter(|pattern| !pattern.is_empty()),
        is_group: args.group,
        rewrites: args.rewrite.clone(),
        parent_death_signal: args.parent_death_signal,
        leaves_directory: true,
    };
    // Before anything runs: who asks for a report gets it, or nothing happens.
    let file = match args.json.as_deref().map(File::create).transpose() {
        Ok(file) => file,
        Err(error) => return cannot_report(args, &error),
    };
    if let Some(directory) = &args.chdir
        && let Err(error) = std::env::set_current_dir(directory)
    {
        let directory = directory.display();
        let what = format_args!("cannot change to the directory {directory}: {error}");
        return fail(&what, FAILED);
    }
    let mut ended = match supervise::run(&options) {
        Ok(ended) => ended,
        Err(error) => return fail(&error, error.code()),
    };
    if file.is_some() {
        let survivors = ended.rest.survivors.iter_mut();
        let survivors = survivors.map(|survivor| &mut survivor.process.id);
        exact_identities(survivors.chain([&mut ended.command]));
    }
    let code = ended.code();
    let is_remapped = args.remap_exit.contains(&code);
    let code = if is_remapped { 0 } else { code };
    // Standard error may be closed; then nobody can read the message.
    let text = report::run::text(&options, &ended);
    let _ = out::tell_text(&text);
    let written = file.map(|mut file| {
        let json = report::run::json(&options, &ended, code)?;
        file.write_all(out::escaped_json(&json).as_bytes())
    });
    if let Err(error) = written.transpose() {
        return cannot_report(args, &error);
    }
    if let Some(signal) = ended.death.signal()
        && !args.exit_code
        && !is_remapped
    {
        die_of(signal.number());
    }
    Code::Command(code)
}

/// Reads `TERM=QUIT`, or `TERM=0` for a signal that is not handed on.
fn parse_rewrite(text: &str) -> Result<(Signal, Option<Signal>), String> {
    let (from, to) = text
        .split_once('=')
        .ok_or_else(|| "two signals like TERM=QUIT, or TERM=0 for none".to_owned())?;
    let from = parse_signal(from)?;
    if !is_forwarded(from.number()) {
        return Err(format!("{from} never comes to be handed on"));
    }
    let to = if to == "0" {
        None
    } else {
        Some(parse_signal(to)?)
    };
    Ok((from, to))
}

fn cannot_report(args: &Args, error: &io::Error) -> Code {
    let path = args.json.as_deref().unwrap_or(Path::new("")).display();
    fail(
        &format_args!("cannot write the report to {path}: {error}"),
        FAILED,
    )
}

/// Prints what went wrong; returns this exit code.
fn fail(error: &dyn Display, code: u8) -> Code {
    out::tell(&format!("lifemon: {error}"));
    Code::Command(code)
}

/// Replaces identities whose start is known to a clock tick by the exact ones, as far as the host's
/// tracker is on and knows them. Others stay as they are.
fn exact_identities<'a>(processes: impl IntoIterator<Item = &'a mut ProcessId>) {
    let snapshot = Tracker::open().ok().flatten();
    let Some(Ok(snapshot)) = snapshot.map(|tracker| tracker.snapshot()) else {
        return;
    };
    for process in processes {
        *process = snapshot.exact(*process).unwrap_or(*process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_as_they_are_typed() {
        let quit = Signal::new(libc::SIGQUIT);
        assert_eq!(parse_rewrite("TERM=SIGQUIT"), Ok((Signal::TERM, quit)));
        assert_eq!(parse_rewrite("15=3"), Ok((Signal::TERM, quit)));
        assert_eq!(parse_rewrite("int=0"), Ok((Signal::INT, None)));
        for wrong in [
            "TERM",
            "=",
            "TERM=",
            "=QUIT",
            "KILL=TERM",
            "CHLD=0",
            "TERM=X",
        ] {
            assert!(parse_rewrite(wrong).is_err(), "{wrong:?} parsed");
        }
    }
}

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
use crate::report;
use crate::supervise::{self, RunOptions};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lifemon run -- ./serve.sh                    what it leaves behind is killed
  lifemon run --grace 2s -- pytest -n 8        after two seconds to end by itself
  lifemon run --json report.json -- make       with a report of what was left

Signals are handed on to the command. With privileges the rest is killed through eBPF, otherwise
through a subreaper, which finds everything that is reparented to lifemon.
Exit codes: the command's own, 128 and the signal that ended it, 125 lifemon has failed,
126 the command may not run, 127 there is no such command.")]
pub struct Args {
    /// Time that processes left behind have to end by themselves
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    grace: Duration,
    /// Sent first to what is left behind
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: Signal,
    /// Leave the processes that are left behind alive, and only report them
    #[arg(long)]
    keep_orphans: bool,
    /// Write a report to this file when the command has ended
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

/// Exit code of what lifemon itself could not do.
const FAILED: u8 = 125;

/// Runs it. All of its failures have codes of their own.
pub(super) fn run(args: &Args) -> Code {
    let options = RunOptions {
        words: args.words.clone(),
        signal: args.signal,
        grace: args.grace,
        keep_orphans: args.keep_orphans,
    };
    // Before anything runs: who asks for a report gets it, or nothing happens.
    let file = match args.json.as_deref().map(File::create).transpose() {
        Ok(file) => file,
        Err(error) => return cannot_report(args, &error),
    };
    let mut ended = match supervise::run(&options) {
        Ok(ended) => ended,
        Err(error) => return fail(&error, error.code()),
    };
    if file.is_some() {
        let survivors = ended.rest.survivors.iter_mut();
        let survivors = survivors.map(|survivor| &mut survivor.process.id);
        exact_identities(survivors.chain([&mut ended.command]));
    }
    // Standard error may be closed; then nobody can read the message.
    let text = report::run::text(&options, &ended.rest);
    let _ = std::io::stderr().write_all(text.as_bytes());
    let written = file.map(|mut file| {
        let json = report::run::json(&options, &ended)?;
        file.write_all(json.as_bytes())
    });
    match written.transpose() {
        Ok(_) => Code::Command(ended.code()),
        Err(error) => cannot_report(args, &error),
    }
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
    let _ = writeln!(std::io::stderr(), "lifemon: {error}");
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

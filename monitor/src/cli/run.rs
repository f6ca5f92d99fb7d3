//! `lifemon run`: a command, and nothing of it left behind.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::kill::parse_signal;
use super::{Code, parse_duration};
use crate::supervise::{self, RunOptions};

/// What was typed after `run`.
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
    /// How long what is left behind may take to end by itself
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    grace: Duration,
    /// Sent first to what is left behind
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: Signal,
    /// Let live what is left behind, and only say what it is
    #[arg(long)]
    keep_orphans: bool,
    /// Write a report to this file when it is over
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

/// Runs it. All of its failures have codes of their own.
pub(super) fn run(args: &Args) -> Code {
    let options = RunOptions {
        words: args.words.clone(),
        signal: args.signal as i32,
        grace: args.grace,
        keep_orphans: args.keep_orphans,
        json: args.json.clone(),
    };
    Code::Command(match supervise::run(&options) {
        Ok(ended) => ended.code(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lifemon: {error}");
            error.code()
        }
    })
}

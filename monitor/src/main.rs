//! Parses what was typed, runs it, and picks the exit code. Nothing is decided here.

use std::process::ExitCode;

use clap::Parser as _;
use lifemon::cli::{self, Cli};

fn main() -> ExitCode {
    lifemon::manager::run_if_asked();
    #[cfg(feature = "agent")]
    if let Some(code) = cli::agent::run_if_asked() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::refuse_usage(&error),
    };
    cli::start_logging(cli.verbose);
    match cli::run(&cli) {
        Ok(code) => code.into(),
        Err(error) => cli::fail(&error),
    }
}

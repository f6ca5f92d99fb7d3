//! The command line, one file for each command: arguments, help and exit codes. No decision about
//! processes is made here.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
mod asked;
mod attach;
mod boot;
mod devices;
mod doctor;
mod ending;
mod explain;
mod generate;
mod gpu;
mod helper;
mod kill;
mod log;
mod orphans;
#[cfg(feature = "agent")]
mod refusal;
mod repeat;
mod run;
pub mod schema;
mod select;
mod sparing;
mod target;
mod track;
mod tree;
mod wait;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anstream::ColorChoice;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::kernel::{self, Closer, LoadOptions};
use crate::kill::KillError;
use crate::report::out::{self, WriteError, printable};
use crate::sys::capabilities;

/// Version and commit.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LIFEMON_COMMIT"), ")");

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done, or the condition holds.
    Done,
    /// The answer is no.
    No,
    /// The exit code of the command that was run.
    Command(u8),
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        match code {
            Code::Done => Self::SUCCESS,
            Code::No => Self::from(1),
            Code::Command(code) => Self::from(code),
        }
    }
}

/// No such process, or no longer that one: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoSuchProcess(pub String);

/// A usage error: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}; try --help")]
pub struct Usage(pub String);

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For scripts: one object, or one a line of a stream.
    Json,
    /// Of lists: one `PID@START_NS` a line, for xargs.
    Name,
    /// Of lists: all that is known, as wide as it is.
    Wide,
}

impl Output {
    /// Returns whether it is for people to read.
    const fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Wide)
    }
}

/// When colours are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal that knows them, unless `NO_COLOR` is set; `CLICOLOR_FORCE` asks for them.
    Auto,
    /// Into a pipe too.
    Always,
    /// Never.
    Never,
}

/// Process lifecycle monitor: which processes belong to what, and the moment one dies
///
/// lifemon keeps the lineage of every process in the kernel with eBPF: who really created it, which
/// processes of a tree are still alive although everything above them has died, and what each one
/// died of.
#[derive(Debug, Parser)]
#[command(name = "lifemon", version = VERSION, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Exit codes: 0 done or yes, 1 the answer is no, 2 usage, 3 cannot run here, 4 no such process.

Examples:
  sudo lifemon attach 4200          watch the tree of process 4200
  sudo lifemon kill 4200            kill that tree, to the last process
  sudo lifemon orphans              what was left behind on this host
  sudo lifemon log --since 10m      who died, and who killed it
  sudo lifemon explain 4200         why it is alive, and whose it is
  sudo lifemon wait 4200            until nothing of that tree is alive
  sudo lifemon gpu                  who holds GPU memory, and where it comes from
  lifemon run -- ./serve.sh         leave nothing of it behind when it ends
  sudo lifemon track on             keep the lineage of this host from now on
  lifemon doctor                    what works here, and the remedy for what does not")]
pub struct Cli {
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    pub output: Output,
    /// Print nothing: the exit code is the answer
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Take each PID as one of the pid namespace of this process, as of a container
    #[arg(long = "in", global = true, value_name = "PID")]
    pub inside: Option<u32>,
    /// When to write colours
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub color: Colour,
    /// Say more; twice: also what the kernel half does
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Ask the node agent, also where this user could look without it
    #[cfg(feature = "agent")]
    #[arg(long, global = true, conflicts_with = "local")]
    pub agent: bool,
    /// Never ask the node agent
    #[cfg(feature = "agent")]
    #[arg(long, global = true)]
    pub local: bool,
    /// Command to run
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the tree of a process until nothing of it is left
    Attach(attach::Args),
    /// Show the lineage as a tree, the dead with living descendants included
    Tree(tree::Args),
    /// List what was left behind: living processes whose creator is dead
    Orphans(orphans::Args),
    /// Say who holds GPUs, where that comes from, and whether it was left behind
    Gpu(gpu::Args),
    /// Kill every process of a tree, nobody else, and prove it
    Kill(kill::Args),
    /// Explain one process: who made it, how it was left, what it holds, what a kill would do
    Explain(explain::Args),
    /// Who died on this host, and of what, although nobody watched: the tracker's flight recorder
    Log(log::Args),
    /// Wait until a tree is extinct, or a process has died, is gone, or has released its GPU memory
    Wait(wait::Args),
    /// Run a command, and kill exactly what it leaves behind
    Run(run::Args),
    /// Switch the host-wide tracker, which needs no process to run
    Track(track::Args),
    /// Say what works here and what does not, each with its remedy
    #[command(
        after_help = "Example:\n  lifemon doctor -o json | jq '.checks[] | select(.state != \"ok\")'"
    )]
    Doctor,
    /// Print the JSON Schemas of what is printed with `-o json`
    Schema(schema::Args),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  lifemon completions bash > /etc/bash_completion.d/lifemon")]
    Completions(generate::CompletionsArgs),
    /// Print the manual page
    #[command(after_help = "Example:\n  lifemon man | man -l -")]
    Man,
    /// Run the node agent: answers and kills for everybody, with their own rights
    #[cfg(feature = "agent")]
    Agent(agent::Args),
    /// Ask NVIDIA's library for the process that started this one
    #[command(name = crate::gpu::nvml::COMMAND, hide = true, after_help = "Example:\n  echo ask | lifemon nvml-server")]
    NvmlServer,
    /// Guard the trees of the workers of the server that started this one
    #[command(hide = true)]
    Helper(helper::Args),
}

/// Runs the command that the user typed.
///
/// # Errors
/// Whatever the command fails with; [`fail`] turns it into a message and an exit code.
pub fn run(cli: &Cli) -> anyhow::Result<Code> {
    out::set_up(
        cli.quiet,
        match cli.color {
            Colour::Auto => ColorChoice::Auto,
            Colour::Always => ColorChoice::Always,
            Colour::Never => ColorChoice::Never,
        },
    );
    if let Some(pid) = cli.inside {
        target::look_inside(pid)?;
    }
    let lists = matches!(
        cli.command,
        Command::Tree(_) | Command::Orphans(_) | Command::Gpu(_)
    );
    if matches!(cli.output, Output::Name | Output::Wide) && !lists {
        let lists = "-o name and -o wide are for lists: tree, orphans, gpu";
        return Err(Usage(lists.to_owned()).into());
    }
    #[cfg(feature = "agent")]
    if let Some(code) = asked::answer(cli)? {
        return Ok(code);
    }
    match &cli.command {
        Command::Attach(args) => attach::run(args, cli.output, cli.verbose),
        Command::Tree(args) => tree::run(args, cli.output, cli.verbose),
        Command::Orphans(args) => orphans::run(args, cli.output, cli.verbose),
        Command::Gpu(args) => gpu::run(args, cli.output, cli.verbose),
        Command::NvmlServer => gpu::serve(),
        Command::Helper(args) => helper::run(args),
        Command::Kill(args) => kill::run(args, cli.output, cli.verbose),
        Command::Explain(args) => explain::run(args, cli.output, cli.verbose),
        Command::Log(args) => log::run(args, cli.output),
        Command::Wait(args) => wait::run(args, cli.output, cli.verbose),
        Command::Run(args) => Ok(run::run(args)),
        Command::Track(args) => track::run(args, cli.output, cli.verbose),
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(args),
        Command::Doctor => doctor::run(cli.output),
        Command::Completions(args) => generate::completions(args),
        Command::Schema(args) => schema::run(args),
        Command::Man => generate::man(),
    }
}

/// Sends log messages to standard error; `RUST_LOG` decides where it is set.
pub fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let environment = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(environment)
        .format(|to, record| {
            let (level, target) = (record.level(), record.target());
            let message = printable(&record.args().to_string());
            writeln!(to, "[{level:<5} {target}] {message}")
        })
        .init();
}

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

/// SIGINT and SIGTERM, which end a command instead of the process: what was attached is given back.
struct Interrupts {
    has_come: Arc<AtomicBool>,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Begins to listen. From here on they also end a wait for the lock of the tracker.
    fn listen() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            signal_hook::flag::register(number, Arc::clone(&stop))?;
        }
        kernel::lock::stop_waiting_when(Arc::clone(&stop));
        Ok(Self {
            has_come: stop,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns whether one of them has come since the beginning.
    fn have_come(&self) -> bool {
        self.has_come.load(Ordering::SeqCst)
    }

    /// Waits until one of them has come.
    ///
    /// Race: one may come while `listen` has begun with the flag and not with the streams, which
    /// would never tell. The flag does.
    async fn next(&mut self) {
        if self.have_come() {
            return;
        }
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Returns the options for a tracker that a command loads itself.
fn load_options(verbose: u8) -> LoadOptions {
    LoadOptions {
        debug: verbose >= 2,
        ..LoadOptions::default()
    }
}

/// Gives up the capabilities that only loading takes: from here on is read what users have written.
fn give_up_rights(kills: bool, enters_namespaces: bool) {
    let administers = enters_namespaces || kills && Closer::may_take_admin();
    if let Err(error) = capabilities::keep_what_answers_take(administers) {
        ::log::warn!("capabilities are kept: {error}");
    }
}

/// Reads `10s`, `1.5s`, `500ms`, `5m`, `1h`, or seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time like 10s, 1.5s, 500ms, 5m or 1h".to_owned();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let length = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(length);
    let unit_us: u64 = match unit {
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(wrong()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    // Six digits are more than anybody measures by.
    let digits = part.len().min(6);
    let parts: u64 = part[..digits].parse().map_err(|_| wrong())?;
    part.parse::<f64>().map_err(|_| wrong())?;
    let us = whole.checked_mul(unit_us).ok_or_else(wrong)?;
    // At most a million days in millionths: it fits.
    let us = us.checked_add(parts * unit_us / 10_u64.pow(digits as u32));
    us.map(Duration::from_micros).ok_or_else(wrong)
}

/// Reads a number of processes: at least a few, at most what a map can hold.
fn parse_capacity(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 16..=4_194_304) => Ok(number),
        _ => Err("a number from 16 to 4194304".to_owned()),
    }
}

/// Reads the size of a ring: `64K`, `1M`, or bytes.
fn parse_ring_size(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bytes: Option<u32> = digits.parse().ok().and_then(|n: u32| n.checked_mul(factor));
    match bytes {
        Some(bytes @ 4_096..=268_435_456) if bytes.is_power_of_two() => Ok(bytes),
        _ => Err("a power of two from 4K to 256M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Example"),
                "{} shows no example",
                command.get_name()
            );
        }
    }

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
    fn times_as_they_are_typed() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0.5h"), Ok(Duration::from_mins(30)));
        for wrong in [
            ".5s",
            "1.s",
            "1.2.3s",
            "",
            "s",
            "1x",
            "-1s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} parsed");
        }
    }

    #[test]
    fn ring_sizes() {
        assert_eq!(parse_ring_size("4K"), Ok(4_096));
        assert_eq!(parse_ring_size("1M"), Ok(1 << 20));
        assert!(parse_ring_size("5000").is_err());
        assert!(parse_ring_size("4096M").is_err());
        assert!(parse_ring_size("").is_err());
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

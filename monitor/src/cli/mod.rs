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
mod failure;
mod generate;
mod gpu;
mod helper;
mod interrupts;
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
mod values;
mod wait;

use std::io::Write as _;
use std::process::ExitCode;

use anstream::ColorChoice;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::kernel::{Closer, LoadOptions};
use crate::report::out::{self, printable};
use crate::sys::capabilities;
pub use failure::{NoSuchProcess, Usage, fail, refuse_usage};
use interrupts::Interrupts;
use values::{parse_capacity, parse_duration, parse_ring_size};

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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

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
}

//! `cargo xtask`: everything a developer or a CI machine does with lifemon, one command each.
//! Here only what was typed and where it goes; each command has its own file.

mod bench;
mod build;
mod ci;
mod dist;
mod ebpf;
mod explore;
mod gpu;
mod python;
mod real_programs;
mod run;
mod schema;
mod setup;
mod stage;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lifemon_vmtest as vmtest;

use test::{Kernels, Pythons};

/// Set-up, build, run and test of lifemon.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the tests and the kernel half need and this machine lacks
    #[command(after_help = "Example:\n  cargo xtask setup")]
    Setup,
    /// Builds the release binary
    #[command(after_help = "Example:\n  cargo xtask build && sudo target/release/lifemon doctor")]
    Build,
    /// Builds, and becomes lifemon as root: its output, signals and exit code are lifemon's own
    #[command(after_help = "Example:\n  cargo xtask run -- attach 4242 -o json")]
    Run {
        /// Arguments for lifemon
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Builds the kernel half from source, and writes the object that is committed
    #[command(after_help = "Example:\n  cargo xtask ebpf && git add monitor/ebpf")]
    Ebpf,
    /// Writes the JSON Schemas of what lifemon prints to docs/schema
    #[command(after_help = "Example:\n  cargo xtask schema && git add docs/schema")]
    Schema,
    /// Format, lints, unit tests, and as root the end-to-end tests, here and on other kernels
    #[command(after_help = "Examples:\n  cargo xtask test\n  \
                            cargo xtask test -- orphans\n  \
                            cargo xtask test --this-kernel\n  \
                            cargo xtask test --real-programs -- postgres\n  \
                            cargo xtask test --gpu")]
    Test {
        /// Only on the running kernel: not in emulated machines, which takes minutes
        #[arg(long)]
        this_kernel: bool,
        /// Also the Python package with every Python from 3.10 on that is found here, with real
        /// servers, and its contract over the module that it replaces
        #[arg(long)]
        pythons: bool,
        /// Nothing but the verdicts on what real programs leave behind: those of Debian, `PyPI` and
        /// npm, which are fetched first (300 MB). ARGS are parts of the names of its rows
        #[arg(long, conflicts_with = "this_kernel")]
        real_programs: bool,
        /// Nothing but the exploration of the protocol between the two halves, for minutes, and the
        /// defects that it has to find. ARGS are parts of the names of defects
        #[arg(long, conflicts_with_all = ["this_kernel", "real_programs"])]
        explore: bool,
        /// Nothing but the tests with a real GPU, which need one of NVIDIA and a python3 with
        /// `PyTorch`. What they have measured is printed
        #[arg(long, conflicts_with_all = ["this_kernel", "real_programs", "explore"])]
        gpu: bool,
        /// A part of the names of tests (of a module too, as `kill::`), or an option of libtest.
        /// Then only on the running kernel as well
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// The same as `test`, and then that the tests left nothing behind
    #[command(after_help = "Example:\n  cargo xtask ci")]
    Ci,
    /// The end-to-end tests on Debian's kernels from 6.1 on, each in an emulated machine
    #[command(after_help = "Examples:\n  cargo xtask vmtest\n  \
                            cargo xtask vmtest --kernel 6.1 -- orphans")]
    Vmtest(vmtest::Options),
    /// Writes what users install to target/dist: archives, packages, the wheel and the image
    #[command(after_help = "Examples:\n  cargo xtask dist\n  cargo xtask dist --check")]
    Dist {
        /// Options, see `cargo xtask dist --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Builds, and runs the benchmarks as root
    #[command(after_help = "Example:\n  cargo xtask bench -- --help")]
    Bench {
        /// Arguments for the benchmarks
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::setup(setup::Report::Everything),
        Task::Build => build::build(),
        Task::Run { args } => run::run(&args),
        Task::Ebpf => ebpf::write(),
        Task::Schema => schema::write(),
        Task::Test {
            real_programs: true,
            args,
            ..
        } => real_programs::run(&args),
        Task::Test {
            explore: true,
            args,
            ..
        } => explore::run(&args),
        Task::Test {
            gpu: true, args, ..
        } => gpu::run(&args),
        Task::Test {
            this_kernel,
            pythons,
            args,
            ..
        } => {
            let kernels = if this_kernel || !args.is_empty() {
                Kernels::Running
            } else {
                Kernels::All
            };
            let pythons = if pythons {
                Pythons::All
            } else {
                Pythons::First
            };
            test::test(&args, kernels, pythons)
        }
        Task::Ci => ci::ci(),
        Task::Vmtest(options) => setup::for_a_build().and_then(|()| vmtest::vmtest(&options)),
        Task::Dist { args } => dist::dist(&args),
        Task::Bench { args } => bench::bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

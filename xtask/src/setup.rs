//! `cargo xtask setup`: looks at the machine (facts), decides what is missing (decide), and
//! installs exactly that here, one line for each thing. Does nothing where nothing is missing.

mod decide;
mod facts;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use decide::{Step, decide};
use facts::Facts;
use lifemon_tools::command::{self, cargo, shown};
use lifemon_tools::kernel_half::is_built_from_source;
use lifemon_tools::packages;
use lifemon_tools::toolchain::LINKED;

/// The version of bpf-linker that lifemon is tested with.
const LINKER_VERSION: &str = "0.13.0";

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// What is there and what is installed.
    Everything,
    /// Only what is installed.
    Changes,
}

/// Leaves a machine that can build lifemon. Any Rust does that; only to build the kernel half from
/// source needs more.
pub(crate) fn for_a_build() -> Result<()> {
    if is_built_from_source() {
        setup(Report::Changes)?;
    }
    Ok(())
}

/// Leaves a machine that can build and test lifemon, or says what it lacks.
pub(crate) fn setup(report: Report) -> Result<()> {
    let facts = Facts::gather();
    let steps = decide(&facts)?;
    let mut installed = false;
    for step in &steps {
        if let Step::Have(what) = step {
            if report == Report::Everything {
                eprintln!("have {what}");
            }
            continue;
        }
        installed = true;
        let (what, command) = install(step)?;
        eprintln!("install {what}: {}", shown(&command));
        command::run(command).with_context(|| format!("cannot install {what}"))?;
    }
    if installed {
        verify()?;
    }
    Ok(())
}

/// Returns what the step is for, and the command that does it.
fn install(step: &Step) -> Result<(String, Command)> {
    Ok(match step {
        Step::Have(what) => (what.clone(), Command::new("true")),
        Step::UpdatePackageLists => ("package lists".to_owned(), packages::update()?),
        Step::InstallPackages(wanted) => ("packages".to_owned(), packages::install(wanted)?),
        Step::InstallLinker { llvm_major, prefix } => {
            let mut command = cargo();
            if let Some(prefix) = prefix {
                command.env("LLVM_PREFIX", prefix);
            }
            // Also where one is recorded as installed, but does not run or is of an older LLVM.
            command.args(["install", "--force", "bpf-linker"]);
            command.args(["--version", LINKER_VERSION, "--no-default-features"]);
            command.args(["--features", &format!("llvm-{llvm_major}")]);
            ("bpf-linker (about a minute)".to_owned(), command)
        }
        Step::LinkToolchain => {
            let mut command = Command::new("rustup");
            command.args(["toolchain", "link", LINKED, "/usr"]);
            (format!("the toolchain {LINKED}"), command)
        }
        Step::AddComponents(components) => {
            let mut command = Command::new("rustup");
            command.args(["component", "add"]).args(components);
            (components.join(" and "), command)
        }
    })
}

/// Claims that nothing is missing now: an installation can succeed and still not be what is found.
fn verify() -> Result<()> {
    let missing: Vec<Step> = decide(&Facts::gather())?
        .into_iter()
        .filter(|step| !matches!(step, Step::Have(_)))
        .collect();
    ensure!(
        missing.is_empty(),
        "installed, but still not found: {missing:?}; is the bin directory of cargo on PATH?"
    );
    Ok(())
}

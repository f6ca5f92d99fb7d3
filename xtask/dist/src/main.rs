//! `cargo xtask dist`: writes what users install to target/dist, and tries it.

mod archive;
mod check;
mod image;
mod packages;
mod plan;
mod processor;
mod root;
mod stage;
mod sums;
mod tools;
mod wheel;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use plan::Plan;

/// The version of lifemon: all crates have the same.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Writes what users install to target/dist: archives, packages, the wheel and the image.
#[derive(Parser)]
#[command(
    name = "cargo xtask dist",
    bin_name = "cargo xtask dist",
    max_term_width = 100
)]
struct Cli {
    /// Tries what is in target/dist: each is installed into an empty system, where doctor and
    /// attach run
    #[arg(long)]
    check: bool,
    /// Makes and tries the archive and the wheel of target/release/lifemon alone, on this system
    #[arg(long, conflicts_with = "check")]
    quick: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if cli.check {
        return check::whole();
    }
    if cli.quick {
        make(Plan::Quick)?;
        return check::quick();
    }
    for artefact in make(Plan::Whole)? {
        let size = fs::metadata(&artefact)?.len();
        println!("{size:>10}  {}", artefact.display());
    }
    Ok(())
}

/// Makes the artefacts, and returns them.
fn make(plan: Plan) -> Result<Vec<PathBuf>> {
    // What an older version left must not be taken for this one's.
    match fs::remove_dir_all(plan.directory()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::create_dir_all(plan.directory())?;
    let processors = plan.processors()?;
    tools::of_python(plan)?;
    let mut artefacts = Vec::new();
    for &processor in &processors {
        artefacts.push(wheel::build(plan, processor)?);
    }
    stage::write(plan)?;
    for &processor in &processors {
        artefacts.push(archive::write(plan, processor)?);
    }
    if plan == Plan::Quick {
        return Ok(artefacts);
    }
    tools::of_rust()?;
    for &processor in &processors {
        artefacts.push(packages::deb(processor)?);
        artefacts.push(packages::rpm(processor)?);
    }
    artefacts.push(image::write(&processors)?);
    artefacts.push(wheel::bill_of_materials()?);
    artefacts.push(sums::write(&artefacts)?);
    Ok(artefacts)
}

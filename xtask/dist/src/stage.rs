//! What goes with the binary: the manual page, completions, and the changelog as Debian has it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};

use crate::VERSION;
use crate::plan::{Plan, here};
use lifemon_tools::command::output;

/// The manual page.
pub(crate) const MANUAL: &str = "lifemon.1";

/// Shells, with the file of their completions.
pub(crate) const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "lifemon.bash"),
    ("zsh", "_lifemon"),
    ("fish", "lifemon.fish"),
];

/// Returns the directory of these files.
pub(crate) fn directory(plan: Plan) -> PathBuf {
    plan.artefact("stage")
}

/// Writes them. The binary knows its options, so it has to run here.
pub(crate) fn write(plan: Plan) -> Result<()> {
    let stage = directory(plan);
    fs::create_dir_all(&stage)?;
    let binary = plan.binary(here()?);
    let manual = said(&binary, &["man"])?;
    fs::write(stage.join(MANUAL), &manual)?;
    fs::write(stage.join("lifemon.1.gz"), gzip(manual.as_bytes())?)?;
    for (shell, file) in COMPLETIONS {
        fs::write(stage.join(file), said(&binary, &["completions", shell])?)?;
    }
    fs::write(stage.join("changelog"), changelog()?)?;
    Ok(())
}

/// Compresses without a time or a name: the same again each time.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn said(binary: &Path, arguments: &[&str]) -> Result<String> {
    output(Command::new(binary).args(arguments))
        .with_context(|| format!("{} does not run: {arguments:?}", binary.display()))
}

fn changelog() -> Result<String> {
    let date = output(Command::new("git").args(["log", "-1", "--format=%cD"]))
        .context("git does not know the date of the last commit: run this in a clone")?;
    let date = date.trim();
    // Debian's dates have two digits for the day.
    let date = match date.split_once(", ") {
        Some((weekday, rest)) if rest.as_bytes().get(1) == Some(&b' ') => {
            format!("{weekday}, 0{rest}")
        }
        _ => date.to_owned(),
    };
    Ok(format!(
        "lifemon ({VERSION}-1) unstable; urgency=medium\n\n  * See CHANGELOG.md of lifemon.\n\n \
         -- The lifemon developers <lifemon@packages.invalid>  {date}\n"
    ))
}

//! The checksums of all artefacts, as `sha256sum --check` reads them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::plan::Plan;

/// Writes them, by the names of the files.
pub(crate) fn write(artefacts: &[PathBuf]) -> Result<PathBuf> {
    let mut lines = String::new();
    for file in artefacts {
        let name = file.file_name().context("an artefact is a file")?;
        let sum = sha256(&fs::read(file)?);
        writeln!(lines, "{sum}  {}", name.display())?;
    }
    let file = Plan::Whole.artefact("SHA256SUMS");
    fs::write(&file, lines)?;
    Ok(file)
}

/// Returns the checksum in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! The archives: the binary, the manual page and the completions, below one directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

use crate::VERSION;
use crate::plan::Plan;
use crate::processor::Processor;
use crate::stage::{self, COMPLETIONS, MANUAL};

/// Writes the archive for a processor.
pub(crate) fn write(plan: Plan, processor: Processor) -> Result<PathBuf> {
    let name = name(processor);
    let mut tar = Tar::default();
    let directory = Path::new(&name);
    tar.file(
        &directory.join("bin/lifemon"),
        &plan.binary(processor),
        0o755,
    )?;
    let stage = stage::directory(plan);
    let manual = directory.join("share/man/man1").join(MANUAL);
    tar.file(&manual, &stage.join(MANUAL), 0o644)?;
    for (shell, file) in COMPLETIONS {
        let inside = directory.join("share/completions").join(shell).join(file);
        tar.file(&inside, &stage.join(file), 0o644)?;
    }
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        tar.file(&directory.join(file), Path::new(file), 0o644)?;
    }
    let file = plan.artefact(&format!("{name}.tar.gz"));
    fs::write(&file, stage::gzip(&tar.finish()?)?)?;
    Ok(file)
}

/// Returns the name of the directory in the archive.
pub(crate) fn name(processor: Processor) -> String {
    format!("lifemon-{VERSION}-{}-linux", processor.rust())
}

/// A tar archive in memory that is the same again for the same files: everything belongs to root
/// and has no time.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Tar {
    /// Adds a file of this machine.
    pub(crate) fn file(&mut self, inside: &Path, file: &Path, mode: u32) -> Result<()> {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.bytes(inside, &contents, mode)
    }

    /// Adds a file with these contents.
    pub(crate) fn bytes(&mut self, inside: &Path, contents: &[u8], mode: u32) -> Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(contents.len() as u64);
        Ok(self.0.append_data(&mut header, inside, contents)?)
    }

    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, inside: &Path) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755);
        header.set_size(0);
        Ok(self.0.append_data(&mut header, inside, &[][..])?)
    }

    /// Returns the archive.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header
}

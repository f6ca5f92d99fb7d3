//! Which compiler and which linker make the kernel half: only the same ones make the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::output;
use crate::kernel_half::{SOURCES, recorded};
use crate::toolchain::{Toolchain, on_path};

/// The versions of everything whose code decides what the object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeWith {
    rustc: String,
    rustc_llvm: String,
    linker: String,
    linker_llvm: String,
}

impl MadeWith {
    /// Looks at what is installed.
    ///
    /// # Errors
    /// When it does not tell its versions.
    pub fn find(toolchain: &Toolchain) -> Result<Self> {
        let rustc = toolchain.sysroot.join("bin/rustc");
        let verbose = output(Command::new(&rustc).arg("-vV"))
            .with_context(|| format!("{} does not tell its version", rustc.display()))?;
        let linker =
            on_path("bpf-linker").context("bpf-linker is not on PATH: run `cargo xtask setup`")?;
        let version = output(Command::new(&linker).arg("--version"))
            .with_context(|| format!("{} does not tell its version", linker.display()))?;
        Ok(Self {
            rustc: verbose.lines().next().unwrap_or_default().to_owned(),
            rustc_llvm: rustc_llvm(&verbose).unwrap_or_default().to_owned(),
            linker: version.trim().to_owned(),
            linker_llvm: linker_llvm(&linker),
        })
    }

    /// Reads what a record says.
    #[must_use]
    pub fn read(record: &str) -> Option<Self> {
        let line = |name| recorded(record, name).map(str::to_owned);
        Some(Self {
            rustc: line("compiler")?,
            rustc_llvm: line("its LLVM")?,
            linker: line("linker")?,
            linker_llvm: line("the linker's LLVM")?,
        })
    }

    /// Returns the record of an object that was made with these from sources of this checksum.
    #[must_use]
    pub fn record(&self, sources: &str) -> String {
        format!(
            "# Written by `cargo xtask ebpf`: what lifemon-ebpf.o was made from and with.\n\
             {SOURCES}: {sources}\n\
             compiler: {}\n\
             its LLVM: {}\n\
             linker: {}\n\
             the linker's LLVM: {}\n",
            self.rustc, self.rustc_llvm, self.linker, self.linker_llvm
        )
    }
}

fn rustc_llvm(verbose_version: &str) -> Option<&str> {
    let mut lines = verbose_version.lines();
    lines.find_map(|line| line.strip_prefix("LLVM version: "))
}

/// Returns the LLVM that the linker uses, which is in its file or in a library that it loads.
fn linker_llvm(linker: &Path) -> String {
    let libraries = output(Command::new("ldd").arg(linker)).unwrap_or_default();
    let library = libraries
        .split_whitespace()
        .find(|word| word.starts_with('/') && word.contains("libLLVM"));
    let file = library.map_or_else(|| linker.to_owned(), PathBuf::from);
    // The file has a hundred megabytes.
    let mut grep = Command::new("grep");
    grep.args([
        "--text",
        "--only-matching",
        "--max-count=1",
        "LLVM version [0-9.]*",
    ]);
    let found = output(grep.env("LC_ALL", "C").arg(file)).unwrap_or_default();
    let version = found.lines().next().and_then(|line| line.split(' ').nth(2));
    version.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let made_with = MadeWith {
            rustc: "rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(),
            rustc_llvm: "22.1.8".to_owned(),
            linker: "bpf-linker 0.13.0".to_owned(),
            linker_llvm: "22.1.8".to_owned(),
        };
        let record = made_with.record("0badcafe");
        assert_eq!(recorded(&record, SOURCES), Some("0badcafe"));
        assert_eq!(MadeWith::read(&record), Some(made_with));
        assert_eq!(MadeWith::read("# nothing\n"), None);
    }

    #[test]
    fn the_llvm_of_rustc_is_read_from_its_version() {
        let text = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(rustc_llvm(text), Some("22.1.8"));
    }
}

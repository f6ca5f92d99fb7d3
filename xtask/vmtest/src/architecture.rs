//! What differs between the processors that a guest can have: names, the emulator, the build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use lifemon_tools::command::{self, output, shown};
use lifemon_tools::packages;
use lifemon_tools::toolchain::on_path;

/// The processor of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// The same as here.
    Amd64,
    /// Another: everything is built for it besides.
    Arm64,
}

/// Where the loader of an arm64 program looks for libraries.
const LIBRARIES: &str = "/lib";

/// What the programs of this workspace need there.
const NEEDED: [&str; 4] = [
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
];

const ARM64_COMPILER: &str = "aarch64-linux-gnu-gcc";

impl Architecture {
    /// Returns the name that Debian has for it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns the emulator.
    pub(crate) fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Returns machine and processor, for the emulator.
    ///
    /// As little as Linux needs: what it would use of a newer processor (string instructions for
    /// copying and clearing, protection of user memory) costs more than it gains when emulated. On
    /// x86-64 without 16-byte compare-and-exchange: with it, QEMU 7.2 gives the kernel's allocator
    /// wrong results on Linux 6.12, and the guest dies with nothing of ours loaded.
    pub(crate) fn machine(self) -> [&'static str; 4] {
        match self {
            Self::Amd64 => ["-machine", "q35", "-cpu", "qemu64,-cx16"],
            Self::Arm64 => ["-machine", "virt", "-cpu", "cortex-a57"],
        }
    }

    /// Returns the serial line, for the kernel.
    pub(crate) fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }

    /// Returns what cargo builds for, where that is not this machine.
    pub(crate) fn target(self) -> Option<&'static str> {
        match self {
            Self::Amd64 => None,
            Self::Arm64 => Some("aarch64-unknown-linux-gnu"),
        }
    }

    /// Installs the emulator and, for another architecture, the compilers, where they are missing.
    pub(crate) fn set_up(self) -> Result<()> {
        match self {
            Self::Amd64 => install(&[(self.emulator(), "qemu-system-x86")]),
            Self::Arm64 => {
                install(&[
                    (self.emulator(), "qemu-system-arm"),
                    (ARM64_COMPILER, "gcc-aarch64-linux-gnu"),
                    (ARM64_COMPILER, "libc6-dev-arm64-cross"),
                ])?;
                let mut rustup = Command::new("rustup");
                rustup.args(["target", "add"]).args(self.target());
                command::run(rustup)
            }
        }
    }

    /// Adds what `command`, a cargo build, needs besides.
    pub(crate) fn build(self, command: &mut Command) {
        if let Some(target) = self.target() {
            command.args(["--target", target]);
            command.env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                ARM64_COMPILER,
            );
        }
    }

    /// Returns every shared library that one of the programs needs, the loader included: where it
    /// is to be, and where it is here.
    pub(crate) fn libraries(self, programs: &[&PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>> {
        match self {
            Self::Amd64 => {
                let mut libraries = Vec::new();
                for program in programs {
                    let list = output(Command::new("ldd").arg(program))
                        .with_context(|| format!("ldd cannot read {}", program.display()))?;
                    libraries.extend(in_ldd(&list).map(|path| (path.clone(), path)));
                }
                libraries.sort_unstable();
                libraries.dedup();
                Ok(libraries)
            }
            Self::Arm64 => NEEDED.into_iter().map(of_the_compiler).collect(),
        }
    }
}

/// Installs the packages of the programs that are missing.
fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let missing = wanted
        .iter()
        .filter(|(program, _)| on_path(program).is_none());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = missing.join(", ");
    for command in [packages::update()?, packages::install(&missing)?] {
        eprintln!("install {what}: {}", shown(&command));
        command::run(command).with_context(|| format!("cannot install {what}"))?;
    }
    Ok(())
}

/// Returns the paths in what ldd prints: `name => /path (address)` or `/path (address)`.
fn in_ldd(list: &str) -> impl Iterator<Item = PathBuf> {
    let words = list.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
}

fn of_the_compiler(name: &str) -> Result<(PathBuf, PathBuf)> {
    let mut compiler = Command::new(ARM64_COMPILER);
    let path = output(compiler.arg(format!("-print-file-name={name}")));
    let path = path.map(|path| PathBuf::from(path.trim()));
    // One that it does not know comes back as it was.
    let path = path.filter(|path| path.is_absolute());
    let path = path.with_context(|| format!("{ARM64_COMPILER} has no {name}"))?;
    Ok((Path::new(LIBRARIES).join(name), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let list = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld.so.2 (0x00007f)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from);
        assert!(in_ldd(list).eq(expected));
    }
}

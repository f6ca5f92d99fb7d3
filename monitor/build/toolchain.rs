//! Which rustup toolchain builds the kernel half: it needs the sources of `core` (`rust-src`).
//! Compiled into the build script and into the tasks, so that set-up and build decide alike; std
//! only.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names another toolchain than the ones looked for.
pub const OVERRIDE_ENV: &str = "LIFEMON_EBPF_TOOLCHAIN";

/// The link that `cargo xtask setup` makes to the distribution's rustc where nightly will not do.
pub const LINKED: &str = "lifemon-ebpf";

/// A toolchain that is installed and has `rust-src`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// As rustup knows it.
    pub name: String,
    /// Its `bin/rustc` and `lib/rustlib` are what builds.
    pub sysroot: PathBuf,
}

/// Returns what `OVERRIDE_ENV` says, when it says something.
#[must_use]
pub fn overridden() -> Option<String> {
    env::var(OVERRIDE_ENV).ok().filter(|name| !name.is_empty())
}

/// Returns the toolchains to try, best first.
#[must_use]
pub fn candidates(overridden: Option<String>) -> Vec<String> {
    overridden.map_or_else(
        || vec![LINKED.to_owned(), "nightly".to_owned()],
        |name| vec![name],
    )
}

/// Returns the first candidate that can build `core`.
#[must_use]
pub fn choose() -> Option<Toolchain> {
    candidates(overridden()).into_iter().find_map(|name| {
        let sysroot = sysroot(&name)?;
        let has_rust_src = sysroot.join("lib/rustlib/src/rust/library").is_dir();
        has_rust_src.then_some(Toolchain { name, sysroot })
    })
}

/// Returns the first executable file of this name in the directories of `PATH`.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn sysroot(name: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", name, "rustc", "--print", "sysroot"])
        // Looking must not install anything.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim_end()))
}

//! The kernel half (monitor-ebpf): compiles it from source, and tells whether the committed object
//! is of these sources. Compiled into the build script and into the tasks, so that both build the
//! same bytes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::toolchain::{Toolchain, on_path};

/// Says, when it is set, that the kernel half is built from source instead of being taken as it is
/// committed.
pub const BUILD_ENV: &str = "LIFEMON_BUILD_EBPF";

/// The committed object, from the directory of the library.
pub const OBJECT: &str = "ebpf/lifemon-ebpf.o";

/// What the object was built from and with: a name, a colon and a value on each line.
pub const RECORD: &str = "ebpf/lifemon-ebpf.txt";

/// The line of the record with the checksum of the sources.
pub const SOURCES: &str = "sources";

/// The target of the kernel half on processors that put the lowest byte first.
pub const LITTLE_ENDIAN: &str = "bpfel-unknown-none";

/// The crate of the kernel half, from the root of the workspace.
const CRATE: &str = "monitor-ebpf";

/// Its program.
const PROGRAM: &str = "tracker";

/// The kernel half that has been compiled.
#[derive(Debug)]
pub struct Compiled {
    /// The object, with all that a debugger would want.
    pub object: PathBuf,
    /// Warnings of the compiler.
    pub warnings: Vec<String>,
}

/// Returns true if the user wants the kernel half built from source.
#[must_use]
pub fn is_built_from_source() -> bool {
    std::env::var_os(BUILD_ENV).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Returns the value of a line of the record.
#[must_use]
pub fn recorded<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(": ");
    record.lines().find_map(value)
}

/// Returns the checksum of the sources of the kernel half: their names and their contents.
///
/// # Errors
/// When they cannot be read.
pub fn checksum(root: &Path) -> Result<String> {
    let source = root.join(CRATE);
    let mut files = vec![source.join("Cargo.toml")];
    list(&source.join("src"), &mut files)?;
    files.sort_unstable();
    let mut sum = crc32fast::Hasher::new();
    for file in &files {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(&source).unwrap_or(file);
        sum.update(name.as_os_str().as_encoded_bytes());
        sum.update(&contents.len().to_le_bytes());
        sum.update(&contents);
    }
    Ok(format!("{:08x}", sum.finalize()))
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Compiles the kernel half, with the sources of `core`. It is quiet: what it prints are warnings
/// and errors, not its progress, which the outer cargo would repeat each time.
///
/// # Errors
/// When bpf-linker is missing, or it does not compile.
pub fn compile(
    cargo: &OsStr,
    toolchain: &Toolchain,
    root: &Path,
    target: &str,
    target_dir: &Path,
) -> Result<Compiled> {
    if on_path("bpf-linker").is_none() {
        bail!("bpf-linker is not on PATH, and the kernel half needs it: run `cargo xtask setup`");
    }
    let mut command = Command::new(cargo);
    command.current_dir(root.join(CRATE));
    command.args(["build", "--quiet", "--release", "--locked"]);
    command.args(["--package", "lifemon-ebpf", "--bins"]);
    command.args(["--target", target, "-Z", "build-std=core"]);
    command.arg("--target-dir").arg(target_dir);
    command.env("RUSTC", toolchain.sysroot.join("bin/rustc"));
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        flags(toolchain, root)?.join("\x1f"),
    );
    // `-Z` on a compiler that is not a nightly one.
    command.env("RUSTC_BOOTSTRAP", "1");
    // Set by the outer cargo, for the compiler of the host.
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    let built = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let diagnostics = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        let context = format!("the kernel half does not build ({})", built.status);
        return Err(anyhow!("{diagnostics}").context(context));
    }
    let lines = diagnostics.lines();
    let warnings = lines.skip_while(|line| !line.starts_with("warning"));
    Ok(Compiled {
        object: target_dir.join(target).join("release").join(PROGRAM),
        warnings: warnings.map(str::to_owned).collect(),
    })
}

/// Returns the flags of the compiler. The object names no path of the machine that built it: the
/// same sources make the same bytes everywhere.
fn flags(toolchain: &Toolchain, root: &Path) -> Result<Vec<String>> {
    // It holds for every processor: nothing in the kernel half reads registers, and the layout of
    // the kernel's structures comes from the running kernel. Only the name of a file of bindings
    // differs.
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut names = vec![
        (root.to_owned(), "/lifemon"),
        (toolchain.sysroot.join("lib/rustlib/src/rust"), "/rust"),
    ];
    let registry = cargo_home()?.join("registry/src");
    for entry in fs::read_dir(registry).into_iter().flatten() {
        names.push((entry?.path(), "/cargo"));
    }
    for (path, name) in names {
        flags.push(format!("--remap-path-prefix={}={name}", path.display()));
    }
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("there is no home directory: set CARGO_HOME")?;
    Ok(home.join(".cargo"))
}

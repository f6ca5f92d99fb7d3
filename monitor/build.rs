//! Compiles the kernel half for the BPF target into `OUT_DIR/tracker`, from where the library
//! embeds it, and records the commit. Installs nothing: what is missing, `cargo xtask setup` gets.

#[path = "../xtask/tools/src/toolchain.rs"]
#[expect(unreachable_pub, reason = "the tools share this file")]
mod toolchain;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow, bail};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            // The cause can be a command of many lines: it belongs below, not in that one line.
            for cause in error.chain().skip(1) {
                eprintln!("{cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR").context("run by cargo only")?);
    let root = manifest_dir
        .parent()
        .context("monitor/ has no parent directory")?;
    record_commit(root);
    build_kernel_half(root)
}

/// What the kernel half is called, there and in `OUT_DIR`.
const OBJECT: &str = "tracker";

/// Set by cargo to the program that compiles the workspace in the compiler's place.
const WRAPPER_ENV: &str = "RUSTC_WORKSPACE_WRAPPER";

/// Lints run nothing: an empty object does for them, and costs no minute. The library does not
/// compile with one otherwise.
fn is_for_lints() -> bool {
    println!("cargo::rerun-if-env-changed={WRAPPER_ENV}");
    let wrapper = env::var_os(WRAPPER_ENV).map(PathBuf::from);
    wrapper.is_some_and(|wrapper| {
        wrapper
            .file_stem()
            .is_some_and(|name| name == "clippy-driver")
    })
}

fn build_kernel_half(root: &Path) -> Result<()> {
    if is_for_lints() {
        let out = PathBuf::from(env::var("OUT_DIR").context("run by cargo only")?);
        return fs::write(out.join(OBJECT), "").context("cannot write an empty object");
    }
    let toolchain = pick_toolchain()?;
    let source = root.join("monitor-ebpf");
    // The versions and the profile come from the two files.
    for input in [&source, &root.join("Cargo.toml"), &root.join("Cargo.lock")] {
        watch(input);
    }
    watch(&toolchain.sysroot.join("bin/rustc"));

    let out = PathBuf::from(env::var("OUT_DIR").context("run by cargo only")?);
    // Apart from the outer cargo's directory, which that cargo has locked.
    let target_dir = out.join("kernel-half");
    let target = bpf_target()?;
    let mut cargo = inner_cargo(&toolchain.name, target)?;
    cargo
        .current_dir(&source)
        .arg("--target-dir")
        .arg(&target_dir);
    let built = cargo
        .output()
        .with_context(|| format!("cannot start {cargo:?}"))?;
    let diagnostics = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        let context = format!(
            "the kernel half (monitor-ebpf) does not build ({})",
            built.status
        );
        return Err(anyhow!("{diagnostics}").context(context));
    }
    // Before the first there may be a word of rustup, about the cargo that it has picked.
    let lines = diagnostics.lines();
    for line in lines.skip_while(|line| !line.starts_with("warning")) {
        println!("cargo::warning={line}");
    }
    let object = target_dir.join(target).join("release").join(OBJECT);
    fs::copy(&object, out.join(OBJECT))
        .with_context(|| format!("the build made no {}", object.display()))?;
    Ok(())
}

/// Returns the target of the kernel half for the processor that lifemon is built for.
fn bpf_target() -> Result<&'static str> {
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").context("run by cargo only")?;
    Ok(match endian.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    })
}

/// Returns the cargo that builds the kernel half, with the sources of `core`. It is quiet: what it
/// prints are warnings and errors, not its progress, which the outer cargo would repeat each time.
fn inner_cargo(toolchain: &str, target: &str) -> Result<Command> {
    let processor = env::var("CARGO_CFG_TARGET_ARCH").context("run by cargo only")?;
    let mut cargo = Command::new("rustup");
    cargo.args(["run", toolchain, "cargo", "build", "--quiet", "--release"]);
    cargo.args(["--package", "lifemon-ebpf", "--bins", "--target", target]);
    cargo.args(["-Z", "build-std=core"]);
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{processor}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // `-Z` on a compiler that is not a nightly one.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // Set by the outer cargo, for the compiler of the host.
    for name in ["RUSTC", WRAPPER_ENV] {
        cargo.env_remove(name);
    }
    Ok(cargo)
}

/// Picks the toolchain for the kernel half, and says in plain words what is missing.
fn pick_toolchain() -> Result<toolchain::Toolchain> {
    println!("cargo::rerun-if-env-changed={}", toolchain::OVERRIDE_ENV);
    if toolchain::on_path("rustup").is_none() {
        bail!("rustup is not on PATH, and the kernel half needs it: run `cargo xtask setup`");
    }
    if toolchain::on_path("bpf-linker").is_none() {
        bail!("bpf-linker is not on PATH, and the kernel half needs it: run `cargo xtask setup`");
    }
    toolchain::choose().with_context(|| {
        let names = toolchain::candidates(toolchain::overridden()).join(", ");
        format!("no toolchain with rust-src for the kernel half ({names}): run `cargo xtask setup`")
    })
}

/// Sets `LIFEMON_COMMIT` for the crate. `-dirty` is as of the last time this script ran.
fn record_commit(root: &Path) {
    let commit = commit(root).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=LIFEMON_COMMIT={commit}");
}

fn commit(root: &Path) -> Option<String> {
    // Below the top of a repository, the commit is that of something else.
    if !git(root, &["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    watch_head(root);
    let short = git(root, &["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(root, &["status", "--porcelain", "--untracked-files=no"])?;
    let dirty = if changes.is_empty() { "" } else { "-dirty" };
    Some(format!("{short}{dirty}"))
}

/// Runs this script again when HEAD moves: to another branch, or with its branch. git names the
/// files, so that worktrees and submodules (where `.git` is a file) are right too.
fn watch_head(root: &Path) {
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let Some(path) = git(root, &["rev-parse", "--git-path", name]) else {
            continue;
        };
        let file = root.join(path);
        if name == "packed-refs" {
            watch(&file);
        } else if let Some(present) = file.ancestors().find(|path| path.exists()) {
            // A packed or unborn branch has no file until the next commit makes it: watch where.
            watch(present);
        }
    }
}

/// cargo takes a watched file that does not exist for one that changed, each time.
fn watch(file: &Path) {
    if file.exists() {
        println!("cargo::rerun-if-changed={}", file.display());
    }
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .current_dir(root)
        // `git status` would write the index.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args(args)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim_end().to_owned())
}

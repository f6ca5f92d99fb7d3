//! Puts the kernel half into `OUT_DIR/tracker`, from where the library embeds it, and records the
//! commit. It takes the committed object, so that stable Rust is all that a build needs;
//! `LIFEMON_BUILD_EBPF=1` compiles it from source instead. Installs nothing.

#![expect(clippy::disallowed_methods, reason = "files of the build are text")]

#[expect(unreachable_pub, reason = "the tasks share this file")]
mod kernel_half;
#[expect(unreachable_pub, reason = "the tasks share this file")]
mod toolchain;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

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
    record_commit(root, &manifest_dir);
    embed_kernel_half(root, &manifest_dir)
}

/// What the kernel half is called in `OUT_DIR`.
const EMBEDDED: &str = "tracker";

fn embed_kernel_half(root: &Path, manifest_dir: &Path) -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR").context("run by cargo only")?);
    println!("cargo::rerun-if-env-changed={}", kernel_half::BUILD_ENV);
    // A package from a registry has no kernel half beside it: its object is what was tested.
    let has_source = is_workspace(root);
    if has_source {
        watch(&root.join("monitor-ebpf"));
    }
    let object = if kernel_half::is_built_from_source() {
        if !has_source {
            bail!(
                "{} is set, and the sources of the kernel half are not here: unset it, or build in \
                 a clone of lifemon",
                kernel_half::BUILD_ENV
            );
        }
        build_kernel_half(root, &out)?
    } else {
        committed(root, manifest_dir, has_source)?
    };
    fs::copy(&object, out.join(EMBEDDED))
        .with_context(|| format!("cannot copy {}", object.display()))?;
    Ok(())
}

fn is_workspace(root: &Path) -> bool {
    root.join("monitor-ebpf/src/main.rs").is_file() && root.join("xtask/Cargo.toml").is_file()
}

/// Returns the committed object, if it is of the sources that are here and for this processor.
fn committed(root: &Path, manifest_dir: &Path, has_source: bool) -> Result<PathBuf> {
    let object = manifest_dir.join(kernel_half::OBJECT);
    let record = manifest_dir.join(kernel_half::RECORD);
    watch(&object);
    watch(&record);
    if bpf_target()? != kernel_half::LITTLE_ENDIAN {
        bail!(
            "the kernel half that comes with lifemon is for processors that put the lowest byte \
             first: set {}=1",
            kernel_half::BUILD_ENV
        );
    }
    if has_source {
        let record = fs::read_to_string(&record).unwrap_or_default();
        let recorded = kernel_half::recorded(&record, kernel_half::SOURCES);
        if recorded != Some(&*kernel_half::checksum(root)?) {
            bail!(
                "{} is not of the sources in monitor-ebpf: run `cargo xtask ebpf`, and commit what \
                 it writes",
                kernel_half::OBJECT
            );
        }
    }
    Ok(object)
}

/// Compiles the kernel half from source, and returns the object.
fn build_kernel_half(root: &Path, out: &Path) -> Result<PathBuf> {
    let toolchain = pick_toolchain()?;
    // The versions and the profile come from the two files.
    for input in [&root.join("Cargo.toml"), &root.join("Cargo.lock")] {
        watch(input);
    }
    watch(&toolchain.sysroot.join("bin/rustc"));
    let cargo = env::var_os("CARGO").context("run by cargo only")?;
    // Apart from the outer cargo's directory, which that cargo has locked.
    let target_dir = out.join("kernel-half");
    let built = kernel_half::compile(&cargo, &toolchain, root, bpf_target()?, &target_dir)?;
    for line in built.warnings {
        println!("cargo::warning={line}");
    }
    Ok(built.object)
}

/// Returns the target of the kernel half for the processor that lifemon is built for.
fn bpf_target() -> Result<&'static str> {
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").context("run by cargo only")?;
    Ok(match endian.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => kernel_half::LITTLE_ENDIAN,
    })
}

/// Picks the toolchain for the kernel half, and says in plain words what is missing.
fn pick_toolchain() -> Result<toolchain::Toolchain> {
    println!("cargo::rerun-if-env-changed={}", toolchain::OVERRIDE_ENV);
    if toolchain::on_path("rustup").is_none() {
        bail!("rustup is not on PATH, and the kernel half needs it: run `cargo xtask setup`");
    }
    toolchain::choose().with_context(|| {
        let names = toolchain::candidates(toolchain::overridden()).join(", ");
        format!("no toolchain with rust-src for the kernel half ({names}): run `cargo xtask setup`")
    })
}

/// Sets `LIFEMON_COMMIT` for the crate. `-dirty` is as of the last time this script ran.
fn record_commit(root: &Path, manifest_dir: &Path) {
    let commit = commit(root).or_else(|| packaged_commit(manifest_dir));
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
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

/// Returns the commit that a package was made from, as cargo has written it into the package.
fn packaged_commit(manifest_dir: &Path) -> Option<String> {
    let info = fs::read_to_string(manifest_dir.join(".cargo_vcs_info.json")).ok()?;
    let (_, after) = info.split_once("\"sha1\"")?;
    let full = after.split('"').nth(1)?;
    full.get(..12).map(str::to_owned)
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

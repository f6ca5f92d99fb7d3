//! Fetches real programs into a directory of their own: Debian's packages are unpacked and not
//! installed, so that no service of theirs starts and the host's stay as they are; those of
//! `PyPI` and npm lie beside them. What is there already is not fetched again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Only root can write here.
const DIRECTORY: &str = "/var/cache/lifemon-real-programs";
/// How long one command of an installation may take.
const LIMIT: &str = "600";

/// Where a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// This package of Debian.
    Debian(&'static str),
    /// These packages of `PyPI`.
    PyPi(&'static str),
    /// This package of npm, and node, which is the host's or Debian's.
    Npm(&'static str),
    /// The host, which has it or has not.
    Host,
}

/// What was installed, and what was not.
#[derive(Debug)]
pub(crate) struct Installed {
    failures: Vec<(Source, String)>,
}

impl Installed {
    /// Installs all that can be had.
    ///
    /// # Errors
    /// When the directory cannot be made. What cannot be installed is no error.
    pub(crate) fn install(sources: impl Iterator<Item = Source>) -> Result<Self> {
        for directory in ["", "stamps", "debs/partial", "root"] {
            let path = Path::new(DIRECTORY).join(directory);
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(&path);
            made.with_context(|| format!("cannot make {}: run this as root", path.display()))?;
        }
        let sources: BTreeSet<Source> = sources.collect();
        let failures = sources.into_iter().filter_map(|source| {
            let error = install(source).err()?;
            Some((source, format!("{error:#}")))
        });
        Ok(Self {
            failures: failures.collect(),
        })
    }

    /// Returns why this source could not be installed.
    pub(crate) fn failure(&self, source: Source) -> Option<&str> {
        let mut failures = self.failures.iter();
        let (_, why) = failures.find(|(failed, _)| *failed == source)?;
        Some(why)
    }
}

/// Installs one, unless that was done before.
fn install(source: Source) -> Result<()> {
    let stamp = |name: &str| Path::new(DIRECTORY).join("stamps").join(name);
    let (name, steps): (_, fn(&str) -> Result<()>) = match source {
        Source::Debian(name) => (name, unpack),
        Source::PyPi(names) => (names, from_pypi),
        Source::Npm(name) => (name, from_npm),
        Source::Host => return Ok(()),
    };
    if stamp(name).exists() {
        return Ok(());
    }
    eprintln!("install {name}");
    steps(name)?;
    fs::write(stamp(name), "").context("cannot note what is installed")
}

/// Unpacks what the host lacks of a package and of what it depends on.
fn unpack(package: &str) -> Result<()> {
    let debs = Path::new(DIRECTORY).join("debs");
    for old in packages_in(&debs)? {
        fs::remove_file(old)?;
    }
    let archives = format!("Dir::Cache::archives={}", debs.display());
    let words = "install -y -qq --no-install-recommends --download-only -o DPkg::Lock::Timeout=60";
    let mut apt = limited("apt-get");
    run(apt
        .args(words.split(' '))
        .args(["-o", &archives])
        .arg(package))?;
    for package in packages_in(&debs)? {
        run(limited("dpkg")
            .arg("--extract")
            .arg(package)
            .arg(root_directory()))?;
    }
    Ok(())
}

fn packages_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).context("cannot look for packages")?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "deb");
    Ok(paths.filter(is_package).collect())
}

fn from_pypi(packages: &str) -> Result<()> {
    let venv = Path::new(DIRECTORY).join("venv");
    run(limited("python3").args(["-m", "venv"]).arg(&venv))?;
    let words = "install --quiet --disable-pip-version-check";
    let mut pip = limited(venv.join("bin/pip"));
    run(pip.args(words.split(' ')).args(packages.split(' ')))
}

fn from_npm(package: &str) -> Result<()> {
    let prefix = Path::new(DIRECTORY).join("npm");
    let words = "install --silent --no-fund --no-audit --prefix";
    run(limited("npm")
        .args(words.split(' '))
        .arg(prefix)
        .arg(package))
}

/// Returns a command that is ended when it takes too long.
fn limited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", LIMIT])
        .arg(program.as_ref());
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    let last = error.lines().last().unwrap_or_default();
    ensure!(
        output.status.success(),
        "{command:?}: {} {last}",
        output.status
    );
    Ok(())
}

/// Returns where Debian's packages are unpacked.
fn root_directory() -> PathBuf {
    Path::new(DIRECTORY).join("root")
}

/// Returns the directories in which the programs are looked for, the host's first.
pub(crate) fn path() -> OsString {
    let mut directories: Vec<PathBuf> = Vec::new();
    for place in ["venv/bin", "npm/node_modules/.bin"] {
        directories.push(Path::new(DIRECTORY).join(place));
    }
    directories.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    for root in [PathBuf::from("/"), root_directory()] {
        directories.push(root.join("usr/sbin"));
        let servers = fs::read_dir(root.join("usr/lib/postgresql"));
        let servers = servers.into_iter().flatten().flatten();
        directories.extend(servers.map(|version| version.path().join("bin")));
        // Before the script of the same name, which knows only the usual place.
        directories.push(root.join("usr/lib/chromium"));
        directories.push(root.join("usr/bin"));
    }
    std::env::join_paths(directories).unwrap_or_default()
}

/// Returns the directories of the unpacked libraries.
pub(crate) fn libraries() -> OsString {
    let root = root_directory();
    let mut directories = vec![root.join("usr/lib")];
    for parent in ["usr/lib", "lib"] {
        let entries = fs::read_dir(root.join(parent)).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        let is_triplet = |path: &PathBuf| path.to_string_lossy().ends_with("-linux-gnu");
        for triplet in paths.filter(is_triplet) {
            directories.push(triplet.join("pulseaudio"));
            directories.push(triplet);
        }
    }
    std::env::join_paths(directories).unwrap_or_default()
}

//! `cargo xtask test --explore`: explores the protocol of the two halves for longer than the
//! ordinary tests do, and then shows that this can fail: every defect of a list, put back into a
//! copy of the sources, has to be found.

mod mutants;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup;
use lifemon_tools::command::{self, cargo};
use lifemon_tools::kernel_half::{RECORD, SOURCES, checksum, recorded};
use mutants::{MUTANTS, Mutant};

/// Multiplies the runs of each exploration.
const RUNS: &str = "LIFEMON_EXPLORE";
const SCALE: &str = "20";

/// The tests, by a part of their names.
const EXPLORATIONS: &str = "kernel::explore::";

/// What of the workspace makes the library.
const SOURCES_OF_IT: [&str; 6] = [
    "Cargo.toml",
    "Cargo.lock",
    "monitor",
    "monitor-ebpf",
    "tests",
    "xtask",
];

/// Explores, and looks for every mutant whose name contains one of `args`; for all without any.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    setup::for_a_build()?;
    if args.is_empty() {
        let mut command = cargo();
        command.args([
            "test",
            "--release",
            "--package",
            "lifemon",
            "--lib",
            EXPLORATIONS,
        ]);
        command.env(RUNS, SCALE);
        command::run(command)?;
    }
    let copy = Path::new("target/explore");
    if copy.exists() {
        fs::remove_dir_all(copy).context("cannot remove an older copy of the sources")?;
    }
    let wanted = |mutant: &&Mutant| {
        let mut names = args.iter().filter_map(|name| name.to_str());
        args.is_empty() || names.any(|name| mutant.name.contains(name))
    };
    ensure!(
        MUTANTS.iter().any(|mutant| wanted(&mutant)),
        "no defect has such a name"
    );
    let mut survivors = Vec::new();
    for mutant in MUTANTS.iter().filter(wanted) {
        let found_by = mutant.find(copy)?;
        if found_by.is_empty() {
            survivors.push(mutant.name);
        }
        println!("{}: {}", mutant.name, verdict(&found_by));
    }
    fs::remove_dir_all(copy).context("cannot remove the copy of the sources")?;
    if !survivors.is_empty() {
        bail!("defects that nothing finds: {}", survivors.join(", "));
    }
    Ok(())
}

fn verdict(found_by: &[String]) -> String {
    match found_by {
        [] => "NOT FOUND".to_owned(),
        tests => format!("found by {}", tests.join(", ")),
    }
}

impl Mutant {
    /// Puts the defect into a fresh copy of the sources; returns the explorations that find it.
    fn find(&self, copy: &Path) -> Result<Vec<String>> {
        copy_sources(copy)?;
        let path = copy.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| self.file.to_owned())?;
        if text.matches(self.sound).count() != 1 {
            bail!(
                "{}: {} does not contain the text once",
                self.name,
                self.file
            );
        }
        fs::write(&path, text.replace(self.sound, self.broken))?;
        vouch(copy)?;
        let output = self.test(copy)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("test result:") {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{}: no test has run: {errors}", self.name);
        }
        let failed = text.lines().filter(|line| line.ends_with("... FAILED"));
        let names = failed.filter_map(|line| line.split(EXPLORATIONS).nth(1)?.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Runs the explorations there.
    fn test(&self, copy: &Path) -> Result<Output> {
        let mut command = cargo();
        command.current_dir(copy);
        command.args(["test", "--package", "lifemon", "--lib", EXPLORATIONS]);
        // Not where the sources are built: cargo could take the one for the other.
        command.env(RUNS, "1");
        command.env("CARGO_TARGET_DIR", fs::canonicalize(copy)?.join("target"));
        let name = self.name;
        command
            .output()
            .with_context(|| format!("{name}: cannot run cargo"))
    }
}

/// Copies the sources to `copy`: those that have changed there alone, so that little is built anew.
/// The copy is removed at the end, so what was there before is of this run.
fn copy_sources(copy: &Path) -> Result<()> {
    fs::create_dir_all(copy)?;
    SOURCES_OF_IT
        .iter()
        .try_for_each(|name| copy_tree(Path::new(name), &copy.join(name)))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry: PathBuf = entry?.path();
            let name = entry.file_name().context("an entry has a name")?;
            copy_tree(&entry, &to.join(name))?;
        }
        return Ok(());
    }
    let contents = fs::read(from).with_context(|| from.display().to_string())?;
    if fs::read(to).ok().as_ref() != Some(&contents) {
        fs::write(to, contents).with_context(|| to.display().to_string())?;
    }
    Ok(())
}

/// Lets the build take the committed object for that of the sources: it is not loaded here.
fn vouch(copy: &Path) -> Result<()> {
    let path = copy.join("monitor").join(RECORD);
    let record = fs::read_to_string(&path)?;
    let before = recorded(&record, SOURCES).context("the record names its sources")?;
    fs::write(&path, record.replace(before, &checksum(copy)?))?;
    Ok(())
}

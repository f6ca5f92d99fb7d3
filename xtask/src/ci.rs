//! `cargo xtask ci`: the tests, and then that they left nothing behind: no new file that git does
//! not know, and nothing of lifemon pinned in the kernel.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::stage::Stages;
use crate::test::{self, Kernels, Pythons};
use lifemon_tools::command::{output, run_lines};
use lifemon_tools::privilege::as_root;

const PINS: &str = "/sys/fs/bpf/lifemon";

/// Runs the tests and the checks after them.
pub(crate) fn ci() -> Result<()> {
    let mut stages = Stages::default();
    let result = all(&mut stages);
    stages.close();
    result
}

fn all(stages: &mut Stages) -> Result<()> {
    let before = untracked()?;
    test::all(stages, &[], Kernels::Running, Pythons::First)?;
    stages.stage("nothing left behind", |_| {
        no_new_files(&before, &untracked()?)?;
        no_pins()
    })
}

/// Files that git neither tracks nor ignores.
fn untracked() -> Result<BTreeSet<String>> {
    let arguments = ["status", "--porcelain", "-z", "--untracked-files=all"];
    let listing = output(Command::new("git").args(arguments))
        .context("git cannot tell what is untracked: run this in a git checkout")?;
    Ok(listing
        .split('\0')
        .filter_map(|entry| entry.strip_prefix("?? "))
        .map(str::to_owned)
        .collect())
}

fn no_new_files(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<()> {
    let new: Vec<&str> = after.difference(before).map(String::as_str).collect();
    ensure!(
        new.is_empty(),
        "the tests left files behind, remove them and mend the test: {}",
        new.join(", ")
    );
    Ok(())
}

/// Claims that nothing is pinned; only root can look into the BPF file system.
fn no_pins() -> Result<()> {
    let mut look = as_root(Path::new("test"), &[])?;
    look.args(["-e", PINS]);
    match run_lines(&mut look, |_| {})?.code() {
        Some(1) => Ok(()),
        Some(0) => bail!("{PINS} exists: run `lifemon track off`, and mend the test that left it"),
        _ => bail!("cannot look for {PINS}: run this as root or with sudo"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_were_not_there_before_are_leftovers() {
        let before = BTreeSet::from(["draft.md".to_owned()]);
        let mut after = before.clone();
        assert!(no_new_files(&before, &after).is_ok());
        after.insert("core.4242".to_owned());
        let error = no_new_files(&before, &after).unwrap_err();
        assert!(error.to_string().ends_with("core.4242"), "{error}");
    }
}

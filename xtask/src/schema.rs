//! `cargo xtask schema`: writes the JSON Schemas of what lifemon prints, a file for each kind of
//! object. A unit test of lifemon checks that they are of the sources.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lifemon_tools::cargo::lifemon;
use serde_json::{Map, Value};

use crate::setup;

/// Where they are.
const DIRECTORY: &str = "docs/schema";

/// Builds lifemon, and writes what it prints.
pub(crate) fn write() -> Result<()> {
    setup::for_a_build()?;
    let output = Command::new(lifemon()?).arg("schema").output()?;
    ensure!(output.status.success(), "lifemon schema has failed");
    let schemas: Map<String, Value> =
        serde_json::from_slice(&output.stdout).context("what lifemon schema prints")?;
    if fs::exists(DIRECTORY)? {
        fs::remove_dir_all(DIRECTORY)?;
    }
    fs::create_dir_all(DIRECTORY)?;
    for (kind, schema) in schemas {
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        fs::write(format!("{DIRECTORY}/{kind}.json"), text)?;
    }
    Ok(())
}

//! The object of `lifemon doctor -o json`.

use serde::Deserialize;

/// The object of `lifemon doctor -o json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoctorReport {
    /// The version of the output.
    pub schema: String,
    /// The kind of the object.
    pub kind: String,
    /// No check has failed.
    pub ok: bool,
    /// Of lifemon.
    pub version: String,
    /// The release of the kernel.
    pub kernel: String,
    /// What was looked at.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// Returns the check of this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn check(&self, name: &str) -> &Check {
        let check = self.checks.iter().find(|check| check.name == name);
        check.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Which.
    pub name: String,
    /// `ok`, `degraded`, `failed` or `skipped`.
    pub state: String,
    /// What was found.
    pub detail: String,
    /// What to do.
    pub remedy: Option<String>,
}

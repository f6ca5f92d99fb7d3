//! A control group under a name of choice, within that of a sandbox.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{DEADLINE, Sandbox, poll};

/// A control group of version 2; empties and removes itself.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Creates it below the sandbox's own.
    ///
    /// # Panics
    /// When it cannot be created.
    #[must_use]
    #[track_caller]
    pub fn new(sandbox: &Sandbox, name: impl AsRef<Path>) -> Self {
        let paths = sandbox.paths().into_iter();
        let unified = paths.into_iter().next().expect("a group of version 2");
        let path = unified.join(name);
        fs::create_dir(&path).expect("a control group");
        Self(path)
    }

    /// Returns where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = poll(DEADLINE, || {
            _ = fs::write(self.0.join("cgroup.kill"), "1");
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => None,
                other => Some(other),
            }
        });
        if !matches!(removed, Some(Ok(()))) {
            eprintln!("{} was not removed: {removed:?}", self.0.display());
        }
    }
}

//! Single files out of Debian packages, kept in a cache under the name of the package's file, so
//! that a new version is another entry. What is fetched and unpacked besides is removed again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt::Apt;
use crate::kernels::Suite;
use lifemon_tools::command;

/// Files of packages, each fetched once.
#[derive(Debug)]
pub(crate) struct Packages {
    apt: Apt,
    directory: PathBuf,
}

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Where it is from.
    pub(crate) suite: Suite,
    /// The image.
    pub(crate) image: PathBuf,
}

impl Packages {
    /// Makes a cache below `directory`.
    pub(crate) fn new(apt: Apt, directory: PathBuf) -> Self {
        Self { apt, directory }
    }

    /// Returns the kernel that a suite has now for virtual machines.
    pub(crate) fn kernel(&self, suite: Suite) -> Result<Kernel> {
        let newest = format!("linux-image-cloud-{}", suite.architecture.debian());
        let dependency = |of: &str, prefix: &str| {
            let dependencies = self.apt.dependencies(of, suite.name);
            dependencies
                .into_iter()
                .find(|name| name.starts_with(prefix))
        };
        let image = dependency(&newest, "linux-image-")
            .with_context(|| format!("{} has no package {newest}", suite.name))?;
        // Since Linux 6.19 the image is in a package of its own.
        let package = dependency(&image, "linux-binary-").unwrap_or(image);
        let image = self.file(&package, suite.name, |name| name.starts_with("vmlinuz"))?;
        Ok(Kernel { suite, image })
    }

    /// Returns a shell and tools that need no library.
    pub(crate) fn busybox(&self, suite: &str) -> Result<PathBuf> {
        self.file("busybox-static", suite, |name| name == "busybox")
    }

    /// Fetches one file of a package.
    fn file(
        &self,
        package: &str,
        suite: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<PathBuf> {
        let deb = self.apt.file_name(package, suite)?;
        let cached = self.directory.join(deb.trim_end_matches(".deb"));
        if !cached.is_file() {
            let work = self.directory.join(".work");
            if work.exists() {
                // Of one that was interrupted.
                fs::remove_dir_all(&work)?;
            }
            fs::create_dir_all(&work)?;
            let done = self.fetch(package, suite, &deb, &work, is_wanted, &cached);
            fs::remove_dir_all(&work)?;
            done?;
        }
        Ok(cached)
    }

    fn fetch(
        &self,
        package: &str,
        suite: &str,
        deb: &str,
        work: &Path,
        is_wanted: impl Fn(&str) -> bool,
        cached: &Path,
    ) -> Result<()> {
        eprintln!("fetching {package} of {suite}");
        self.apt.download(package, suite, work)?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(work.join(deb));
        unpack.arg(work.join("unpacked"));
        command::run(unpack)?;
        let found = find(&work.join("unpacked"), &is_wanted)?;
        let found = found.with_context(|| format!("{deb} lacks the file that it is for"))?;
        // At once, so that an interrupted fetch leaves nothing that looks whole.
        Ok(fs::rename(found, cached)?)
    }
}

/// Returns the first file below `directory` with a name that is wanted.
fn find(directory: &Path, is_wanted: &impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let mut left = vec![directory.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_wanted) {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

//! Debian's own package tools on lists of our own: apt with a private configuration, which checks
//! signatures as always. The host's lists stay as they are; its mirror and its proxies are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

use crate::architecture::Architecture;
use lifemon_tools::command::{output, shown};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists younger than this are not fetched again.
const FRESH: Duration = Duration::from_hours(24);

/// What apt makes of the lists it keeps.
const CACHES: [&str; 2] = [
    "Dir::Cache::pkgcache=pkgcache.bin",
    "Dir::Cache::srcpkgcache=srcpkgcache.bin",
];

/// apt, kept away from the host's lists.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Writes the private configuration below `directory`, for these suites of one architecture.
    pub(crate) fn prepare(
        directory: PathBuf,
        architecture: Architecture,
        suites: &[&str],
    ) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).is_file(),
            "{KEYRING} is missing: install debian-archive-keyring"
        );
        for inner in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(inner))?;
        }
        let mirror = mirror().context("apt has no mirror of Debian: look at its sources")?;
        fs::write(
            directory.join("sources.list"),
            sources(&mirror, architecture, suites),
        )?;
        fs::write(directory.join("status"), "")?;
        fs::write(
            directory.join("apt.conf"),
            configuration(&directory, architecture),
        )?;
        Ok(Self { directory })
    }

    /// Fetches the lists unless they are fresh. What went wrong is returned, not an error: other
    /// suites, or older lists, may still do.
    pub(crate) fn refresh(&self) -> Result<Option<String>> {
        let stamp = self.directory.join("fetched");
        let age = fs::metadata(&stamp).and_then(|stamp| stamp.modified());
        let age = age.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if age.is_ok_and(|age| age < FRESH) {
            return Ok(None);
        }
        eprintln!("fetching package lists of Debian's suites");
        let mut update = self.tool("apt-get");
        update.args(["update", "--quiet", "--quiet", "--error-on=any"]);
        let done = update.output().context("cannot start apt-get")?;
        if done.status.success() {
            fs::write(stamp, "")?;
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        Ok(Some(text))
    }

    /// Returns what a package of a suite depends on.
    pub(crate) fn dependencies(&self, package: &str, suite: &str) -> Vec<String> {
        let mut depends = self.tool("apt-cache");
        depends.args(["depends", "--important"]);
        depends.arg(format!("{package}/{suite}"));
        let text = output(&mut depends).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect()
    }

    /// Returns the name of the file that a package of a suite comes in: its name, version,
    /// architecture.
    pub(crate) fn file_name(&self, package: &str, suite: &str) -> Result<String> {
        let mut download = self.tool("apt-get");
        download.args(["download", "--print-uris"]);
        download.arg(format!("{package}/{suite}"));
        let text = output(&mut download).unwrap_or_default();
        let name = text.lines().find_map(|line| line.split(' ').nth(1));
        let name = name.filter(|name| !name.contains('/'));
        Ok(name
            .with_context(|| format!("{suite} has no package {package}"))?
            .to_owned())
    }

    /// Downloads a package into `directory`, checked against the signed lists.
    pub(crate) fn download(&self, package: &str, suite: &str, directory: &Path) -> Result<()> {
        let mut download = self.tool("apt-get");
        download.args(["download", "--quiet", "--quiet"]);
        download
            .arg(format!("{package}/{suite}"))
            .current_dir(directory);
        let done = download.output().context("cannot start apt-get")?;
        if !done.status.success() {
            let text = String::from_utf8_lossy(&done.stderr);
            bail!("`{}` failed: {}", shown(&download), text.trim_end());
        }
        Ok(())
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        // On the command line, which has the last word: the images of containers switch these off,
        // and every call would read all lists again, for seconds.
        for option in CACHES {
            command.args(["-o", option]);
        }
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command.env("LC_ALL", "C");
        command
    }
}

/// Returns where this host gets Debian's packages from.
fn mirror() -> Option<String> {
    let mut targets = Command::new("apt-get");
    let format = "$(LABEL)|$(RELEASE)|$(REPO_URI)";
    targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
    mirror_of(&output(&mut targets)?)
}

/// Returns the archive itself rather than its security updates. Without lists there are no labels.
fn mirror_of(targets: &str) -> Option<String> {
    let rows = targets.lines().filter_map(|line| {
        let (label, rest) = line.split_once('|')?;
        let (release, uri) = rest.split_once('|')?;
        Some((label, release, uri))
    });
    let labelled = rows.clone().find(|(label, ..)| *label == "Debian");
    let unlabelled = |(label, release, _): &(&str, &str, &str)| {
        label.starts_with('$') && !release.ends_with("-security")
    };
    let (.., uri) = labelled.or_else(|| rows.clone().find(unlabelled))?;
    Some(uri.to_owned())
}

fn sources(mirror: &str, architecture: Architecture, suites: &[&str]) -> String {
    let name = architecture.debian();
    let line = |suite: &&str| {
        format!("deb [arch={name} target=Packages signed-by={KEYRING}] {mirror} {suite} main\n")
    };
    suites.iter().map(line).collect()
}

fn configuration(directory: &Path, architecture: Architecture) -> String {
    let root = directory.display();
    let name = architecture.debian();
    format!(
        "Dir::State \"{root}\";\n\
         Dir::State::lists \"{root}/lists\";\n\
         Dir::State::status \"{root}/status\";\n\
         Dir::Cache \"{root}\";\n\
         Dir::Cache::archives \"{root}/archives\";\n\
         Dir::Etc::sourcelist \"{root}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Acquire::Languages \"none\";\n\
         APT::Architecture \"{name}\";\n\
         APT::Sandbox::User \"\";\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_archive() {
        let targets = "Debian-Security|trixie-security|http://one/debian-security/\n\
                       Debian|trixie|http://two/debian/\n";
        assert_eq!(mirror_of(targets).as_deref(), Some("http://two/debian/"));
    }

    #[test]
    fn without_lists_the_first_that_is_not_for_security() {
        let targets = "$(LABEL)|trixie-security|http://one/debian-security/\n\
                       $(LABEL)|trixie|http://two/debian/\n";
        assert_eq!(mirror_of(targets).as_deref(), Some("http://two/debian/"));
        assert_eq!(mirror_of("Ubuntu|noble|http://three/ubuntu/\n"), None);
    }

    #[test]
    fn every_suite_is_a_source() {
        let text = sources("http://mirror/", Architecture::Arm64, &["bookworm", "sid"]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("deb [arch=arm64 "), "{text}");
        assert!(text.contains("http://mirror/ bookworm main\n"), "{text}");
    }
}

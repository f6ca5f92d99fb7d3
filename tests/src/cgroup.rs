//! Control groups for tests: where they are mounted (version 2, or version 1 controllers beside
//! it), and one group that can be emptied and removed for certain.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Pidfd;
use crate::wait::poll;

/// How long emptying a group may take.
const REMOVAL: Duration = Duration::from_secs(5);

/// Mount points of the hierarchies that tests use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mounts {
    pub(crate) unified: Option<PathBuf>,
    pub(crate) pids_v1: Option<PathBuf>,
    pub(crate) memory_v1: Option<PathBuf>,
}

impl Mounts {
    pub(crate) fn find() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.pids_v1, &self.memory_v1]
            .into_iter()
            .flatten()
    }

    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = mount.split(' ').nth(4).map(unescape) else {
                continue;
            };
            let mut words = filesystem.split(' ');
            let (kind, options) = (words.next(), words.nth(1).unwrap_or_default());
            let has = |controller| options.split(',').any(|option| option == controller);
            match kind {
                Some("cgroup2") => _ = mounts.unified.get_or_insert(point),
                Some("cgroup") if has("pids") => _ = mounts.pids_v1.get_or_insert(point),
                Some("cgroup") if has("memory") => _ = mounts.memory_v1.get_or_insert(point),
                _ => {}
            }
        }
        mounts
    }
}

/// Reads what the kernel writes as three octal digits: spaces and the like; only the space is
/// usual.
fn unescape(point: &str) -> PathBuf {
    PathBuf::from(point.replace("\\040", " "))
}

/// One directory of a control group hierarchy.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Returns a group that another, dead test process made.
    pub(crate) fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    pub(crate) fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }

    /// Returns its processes, zombies left out.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
            .collect()
    }

    /// Kills everything in the group, again and again until it is empty, and removes it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let outcome = poll(REMOVAL, || {
            if !self.has("cgroup.kill") || self.set("cgroup.kill", "1").is_err() {
                self.kill_each();
            }
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Ok(())),
                other => Some(other),
            }
        });
        outcome.unwrap_or_else(|| {
            let left = self.pids();
            Err(io::Error::other(format!(
                "{} still holds {left:?}",
                self.path.display()
            )))
        })
    }

    /// Signals through a pidfd opened while the pid was seen in the group before and after, so
    /// that a reused number is never hit.
    fn kill_each(&self) {
        let handles: Vec<_> = self
            .pids()
            .into_iter()
            .filter_map(|pid| Some((pid, Pidfd::open(pid)?)))
            .collect();
        let still_here = self.pids();
        for (_, handle) in handles.iter().filter(|(pid, _)| still_here.contains(pid)) {
            // It may have ended meanwhile, which is what this is for.
            _ = handle.signal(Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_all_three_hierarchies() {
        let mounts = Mounts::parse(
            "35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory\n\
             39 31 0:36 / /cg/pids rw shared:9 - cgroup cgroup rw,pids\n\
             41 31 0:38 / /cg/uni\\040fied rw,relatime - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(mounts.unified, Some("/cg/uni fied".into()));
        assert_eq!(mounts.pids_v1, Some("/cg/pids".into()));
        assert_eq!(mounts.memory_v1, Some("/cg/memory".into()));
    }

    #[test]
    fn lines_that_are_no_mounts_are_skipped() {
        assert_eq!(
            Mounts::parse("\nnonsense\n1 2 - cgroup2\n"),
            Mounts::default()
        );
    }
}

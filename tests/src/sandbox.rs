//! One test's private corner of the host: a control group with a limit on processes, a temporary
//! directory, a memory-limited group on request. Nothing in it outlives the value.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cgroup::{Group, Mounts};

const PREFIX: &str = "lifemon-test-";
const MEMORY_SUFFIX: &str = "-memory";
/// More than any test needs, far less than would hurt the host.
const PROCESSES_MAX: &str = "3000";

/// Kills what is left in it and removes itself on drop.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    mounts: Mounts,
    /// What a process joins to be in the sandbox.
    joined: Vec<Group>,
    /// Made on request; processes move there by themselves.
    memory: Option<Group>,
    directory: PathBuf,
}

impl Sandbox {
    /// Makes one, and removes those whose test process has died without doing so.
    ///
    /// # Panics
    /// When there is no cgroup version 2 mount, or this user may not create groups there.
    #[must_use]
    pub fn new() -> Self {
        static SWEEP: Once = Once::new();
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mounts = Mounts::find().expect("mounts of this process");
        SWEEP.call_once(|| sweep(&mounts));
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).expect("temporary directory of a sandbox");
        let mut sandbox = Self {
            name,
            mounts,
            joined: Vec::new(),
            memory: None,
            directory,
        };
        // From here on a panic drops the sandbox, which removes what was made so far.
        sandbox
            .make_groups()
            .expect("control groups of a sandbox (they need root)");
        sandbox
    }

    fn make_groups(&mut self) -> io::Result<()> {
        let unified = self.mounts.unified.as_ref();
        let unified = unified.ok_or_else(|| io::Error::other("no cgroup version 2 mount"))?;
        self.joined.push(Group::create(unified.join(&self.name))?);
        if let Some(pids) = &self.mounts.pids_v1 {
            self.joined.push(Group::create(pids.join(&self.name))?);
        }
        match self.joined.iter().find(|group| group.has("pids.max")) {
            Some(group) => group.set("pids.max", PROCESSES_MAX),
            None => Ok(()),
        }
    }

    /// Makes a group whose processes together get no more than this memory, swap included. A
    /// process joins it by writing `0` to `cgroup.procs` in the directory that this returns; `None`
    /// where the memory controller is not available to us.
    ///
    /// # Panics
    /// When the group cannot be made, or was already.
    pub fn memory_limited(&mut self, limit_bytes: u64) -> Option<PathBuf> {
        assert!(self.memory.is_none(), "one memory-limited group a sandbox");
        let parent = self
            .mounts
            .memory_v1
            .as_ref()
            .or(self.mounts.unified.as_ref())?;
        // Beside the sandbox's group: below it, version 2 allows no controller.
        let path = parent.join(format!("{}{MEMORY_SUFFIX}", self.name));
        let group = self
            .memory
            .insert(Group::create(path).expect("memory-limited group"));
        let limit = limit_bytes.to_string();
        let limits = [
            ("memory.limit_in_bytes", limit.as_str()),
            ("memory.memsw.limit_in_bytes", limit.as_str()),
            ("memory.max", limit.as_str()),
            ("memory.swap.max", "0"),
        ];
        let mut limited = false;
        for (file, value) in limits.into_iter().filter(|(file, _)| group.has(file)) {
            group.set(file, value).expect("memory limit");
            limited = true;
        }
        limited.then(|| group.path().to_path_buf())
    }

    /// Makes the command's process, and so all its descendants, start in the sandbox.
    ///
    /// # Panics
    /// When a group of the sandbox has vanished.
    pub fn enter(&self, command: &mut Command) {
        let procs = self
            .joined
            .iter()
            .map(|group| group.path().join("cgroup.procs"));
        let procs: Vec<_> = procs
            .map(|path| {
                fs::OpenOptions::new()
                    .write(true)
                    .open(path)
                    .expect("cgroup.procs")
            })
            .collect();
        let join = move || procs.iter().try_for_each(|mut file| file.write_all(b"0"));
        // SAFETY: between fork and exec it only writes to descriptors that are already open.
        unsafe { command.pre_exec(join) };
    }

    /// Returns a directory for the test's own files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns pids in the sandbox now, zombies left out.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.joined
            .iter()
            .chain(&self.memory)
            .flat_map(Group::pids)
            .collect()
    }

    /// Returns all directories of the sandbox: its groups and the temporary one.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let groups = self
            .joined
            .iter()
            .chain(&self.memory)
            .map(|group| group.path().to_path_buf());
        groups.chain([self.directory.clone()]).collect()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let groups = self.joined.iter().chain(&self.memory);
        let mut failures: Vec<_> = groups.filter_map(|group| group.remove().err()).collect();
        failures.extend(fs::remove_dir_all(&self.directory).err());
        if failures.is_empty() {
        } else if std::thread::panicking() {
            eprintln!("sandbox {} was not removed: {failures:?}", self.name);
        } else {
            panic!("sandbox {} was not removed: {failures:?}", self.name);
        }
    }
}

/// Removes sandboxes of dead test processes. Two sweeps at once do no harm.
fn sweep(mounts: &Mounts) {
    for directory in mounts.all() {
        stale(directory).for_each(|path| _ = Group::existing(path).remove());
    }
    stale(&std::env::temp_dir()).for_each(|path| _ = fs::remove_dir_all(path));
}

fn stale(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let owner = entry.file_name().to_str().and_then(owner);
            owner.is_some_and(|pid| {
                pid == std::process::id() || crate::proc::stat(pid.cast_signed()).is_none()
            })
        })
        .map(|entry| entry.path())
}

/// Returns the test process that made the sandbox of this name. Our own pid means an earlier
/// process of the same number: the sweep comes before our first sandbox.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (pid, count) = rest
        .strip_suffix(MEMORY_SUFFIX)
        .unwrap_or(rest)
        .split_once('-')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_sandboxes() {
        assert_eq!(owner("lifemon-test-12-0"), Some(12));
        assert_eq!(owner("lifemon-test-12-3-memory"), Some(12));
        for other in [
            "lifemon-test-12",
            "lifemon-test-x-1",
            "lifemon-test-1-1-x",
            "lifemon",
            "",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}

//! A mount namespace for one test, with a `/run` and a BPF file system of its own: users may do
//! there what they like to the places where lifemon keeps its pins, and the host's stay as they
//! are.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::bpf::BPF_FS;
use crate::handicap::{as_nobody, own_mounts};
use crate::lifemon::end;

/// Where a test keeps a second way to the BPF file system for a moment.
const ASIDE: &str = "/run/aside";

/// The namespace, held by a process that does nothing.
#[derive(Debug)]
pub struct OwnMounts {
    holder: Child,
}

impl OwnMounts {
    /// Makes one; `options` are those of its BPF file system, `None` for a host that has none.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn new(options: Option<&'static str>) -> Self {
        let mut command = holder();
        let prepare = move || {
            own_mounts()?;
            fresh("tmpfs", "/run", "mode=0755")?;
            // What the host has mounted there, as often as it has.
            while umount2(BPF_FS, MntFlags::MNT_DETACH).is_ok() {}
            options.map_or(Ok(()), |options| fresh("bpf", BPF_FS, options))
        };
        // SAFETY: between fork and exec it makes system calls; nix copies paths to the stack.
        unsafe { command.pre_exec(prepare) };
        Self {
            holder: command.spawn().expect("a mount namespace"),
        }
    }

    /// Makes a second one in a network namespace of its own, and so with another `/sys`, that has
    /// the same BPF file system.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn in_another_network(&self) -> Self {
        let mut command = holder();
        self.enter(&mut command);
        let prepare = || {
            own_mounts()?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            fresh("tmpfs", "/run", "mode=0755")?;
            std::fs::create_dir(ASIDE)?;
            bind(BPF_FS, ASIDE)?;
            fresh("sysfs", "/sys", "")?;
            bind(ASIDE, BPF_FS)?;
            umount2(ASIDE, MntFlags::MNT_DETACH)?;
            Ok(())
        };
        // SAFETY: as above; it has one thread, which may allocate.
        unsafe { command.pre_exec(prepare) };
        Self {
            holder: command.spawn().expect("a network namespace"),
        }
    }

    /// Makes a second one with the same `/run` and the same BPF file system. What is mounted in one
    /// of them later is not seen in the other.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn beside(&self) -> Self {
        let mut command = holder();
        self.enter(&mut command);
        // SAFETY: as above.
        unsafe { command.pre_exec(own_mounts) };
        Self {
            holder: command.spawn().expect("a mount namespace"),
        }
    }

    /// Makes the command start there.
    ///
    /// # Panics
    /// When the namespace has gone.
    pub fn enter(&self, command: &mut Command) {
        let namespace = |kind| {
            let path = format!("/proc/{}/ns/{kind}", self.holder.id());
            File::open(path).expect("a namespace")
        };
        let (mounts, network) = (namespace("mnt"), namespace("net"));
        let prepare = move || {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls alone.
        unsafe { command.pre_exec(prepare) };
    }

    /// Returns the way to an absolute path of the namespace from outside.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        Path::new("/proc")
            .join(self.holder.id().to_string())
            .join("root")
            .join(relative)
    }

    /// Runs a program there as root, and waits for it; whether it succeeded.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn try_as_root(&self, words: &[&str]) -> bool {
        self.run(words, |_| {})
    }

    /// Runs a program there as the user who owns nothing; whether it succeeded.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn try_as_nobody(&self, words: &[&str]) -> bool {
        self.run(words, as_nobody)
    }

    /// Does the same, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn as_root(&self, words: &[&str]) {
        assert!(self.try_as_root(words), "{words:?}");
    }

    /// Does the same, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn as_nobody(&self, words: &[&str]) {
        assert!(self.try_as_nobody(words), "{words:?}");
    }

    #[track_caller]
    fn run(&self, words: &[&str], change: impl FnOnce(&mut Command)) -> bool {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stderr(Stdio::null());
        self.enter(&mut command);
        change(&mut command);
        command.status().expect("a program").success()
    }
}

impl Drop for OwnMounts {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

/// Starts a process that waits for the end of its input, which its parent holds.
fn holder() -> Command {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

fn fresh(kind: &'static str, target: &'static str, options: &'static str) -> io::Result<()> {
    let flags = MsFlags::empty();
    Ok(mount(Some(kind), target, Some(kind), flags, Some(options))?)
}

fn bind(source: &'static str, target: &'static str) -> io::Result<()> {
    let none: Option<&str> = None;
    Ok(mount(Some(source), target, none, MsFlags::MS_BIND, none)?)
}

//! Checks of what lifemon needs besides the tracker, each by doing it: the kill of a child, a
//! signal that is none to a process of somebody else, a look at `/proc`, a directory in the BPF
//! file system. Nothing is left of it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{Pid, geteuid};

use super::{Check, State};
use crate::kernel::{Error, Tracker, place, preflight};
use crate::kill::{KillError, KillOptions, kill_trees};
use crate::proc;
use crate::sys::runtime::current_thread;
use crate::sys::{child, signals};

/// Inode of the initial user namespace, `PROC_USER_INIT_INO` in the kernel.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

const CAP_KILL: u32 = 5;

/// The longest life of a child that is to be killed.
const CHILD_LIFE: Duration = Duration::from_mins(1);

/// The longest time to try to kill it.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks that capabilities count here: those of another user namespace do not for BPF.
pub(super) fn user_namespace() -> Check {
    const NAME: &str = "user namespace";
    match fs::metadata("/proc/self/ns/user") {
        Ok(namespace) if namespace.ino() == INITIAL_USER_NAMESPACE => {
            Check::ok(NAME, "the initial one")
        }
        Ok(_) => Check::with(
            NAME,
            State::Failed,
            "one of its own, whose capabilities do not count for BPF",
            "run lifemon on the host, outside of rootless containers and `unshare --user`",
        ),
        Err(error) => Check::with(
            NAME,
            State::Degraded,
            format!("cannot be seen: {error}"),
            "mount /proc",
        ),
    }
}

/// Kills a child that was made for it, as `lifemon kill` does.
pub(super) fn kill_of(tracker: Tracker) -> Check {
    const NAME: &str = "kill";
    let failed = |detail: String| {
        let remedy = "run as root: signals to others need CAP_KILL, and the closer of a kill \
             needs what loading needs, CAP_BPF and CAP_PERFMON";
        Check::with(NAME, State::Degraded, detail, remedy)
    };
    match child::fork() {
        Ok(None) => {
            std::thread::sleep(CHILD_LIFE);
            child::exit(0);
        }
        Ok(Some(pid)) => {
            let killed = kill_child(tracker, pid);
            // Unreaped until here, so the number is the child's.
            let _ = signals::send_to_child(pid, libc::SIGKILL, false);
            child::wait_for_end(pid);
            match killed {
                Ok(true) => Check::ok(NAME, "a process was killed, and the proof was complete"),
                Ok(false) => failed("a process that was to be killed was left alive".to_owned()),
                Err(error) => failed(error.to_string()),
            }
        }
        Err(error) => Check {
            name: NAME,
            state: State::Skipped,
            detail: format!("not tried: {error}"),
            remedy: Some("`lifemon doctor` tries it".to_owned()),
        },
    }
}

/// Returns whether a kill of this child is proven.
fn kill_child(tracker: Tracker, pid: u32) -> Result<bool, KillError> {
    let root = tracker.snapshot()?.live(pid).map(|(id, _)| *id);
    let root = root.ok_or_else(|| Error::NoProcess(pid.to_string()))?;
    let runtime = current_thread().map_err(KillError::NotPrepared)?;
    let options = KillOptions::new().timeout(KILL_TIMEOUT);
    let report = runtime.block_on(kill_trees(tracker, root, &[], &options))?;
    Ok(report.is_done())
}

/// Asks whether processes of others may be signalled: one of them where there is one, else what
/// that needs.
pub(super) fn signals() -> Check {
    const NAME: &str = "signals";
    let denied = || {
        Check::with(
            NAME,
            State::Degraded,
            "only processes of the same user may be signalled: CAP_KILL is missing",
            "run as root, or grant CAP_KILL, to kill the processes of others",
        )
    };
    let own = geteuid().as_raw();
    let is_of_another = |pid: &u32| {
        let directory = fs::metadata(format!("/proc/{pid}"));
        directory.is_ok_and(|directory| directory.uid() != own)
    };
    let other = proc::pids().unwrap_or_default().into_iter();
    match other
        .filter(is_of_another)
        .map(try_signal)
        .find(|tried| *tried != Err(Errno::ESRCH))
    {
        Some(Ok(())) => Check::ok(NAME, "processes of other users may be signalled"),
        Some(Err(Errno::EPERM)) => denied(),
        Some(Err(errno)) => Check::with(
            NAME,
            State::Degraded,
            format!("processes of other users may not be signalled: {errno}"),
            "see what forbids it: a security module, perhaps",
        ),
        None if preflight::has_capability(CAP_KILL) => {
            Check::ok(NAME, "CAP_KILL; there is no process of another user")
        }
        None => denied(),
    }
}

/// Sends nothing to a process, as if it were a signal.
fn try_signal(pid: u32) -> Result<(), Errno> {
    kill(Pid::from_raw(pid.cast_signed()), None)
}

/// Looks whether `/proc` shows every process.
pub(super) fn processes() -> Check {
    match proc::trouble() {
        None => Check::ok("/proc", "shows every process"),
        Some(trouble) => Check::with(
            "/proc",
            State::Degraded,
            trouble,
            "run as root, with the /proc of the host: command lines, parents and open files \
             are known from there alone",
        ),
    }
}

/// Makes a directory where the tracker would be pinned, and removes it.
pub(super) fn pins() -> Check {
    const NAME: &str = "pins";
    let place = Path::new(place::SHARED);
    if !geteuid().is_root() {
        return Check::with(
            NAME,
            State::Degraded,
            "only root may pin the tracker",
            "`sudo lifemon track on`",
        );
    }
    if statfs(place).map(|found| found.filesystem_type()) != Ok(BPF_FS_MAGIC) {
        let place = place.display();
        return Check::ok(
            NAME,
            format!("no BPF file system on {place}: `lifemon track on` mounts one"),
        );
    }
    let directory = place.join(format!("lifemon-doctor-{}", std::process::id()));
    let made = fs::DirBuilder::new().mode(0o700).create(&directory);
    match made.and_then(|()| fs::remove_dir(&directory)) {
        Ok(()) => Check::ok(NAME, format!("{} may be written", place.display())),
        Err(error) => {
            let is_read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
            let why = if is_read_only {
                "it is mounted read-only".to_owned()
            } else {
                error.to_string()
            };
            Check::with(
                NAME,
                State::Degraded,
                format!("{} may not be written: {why}", place.display()),
                format!(
                    "`mount -o remount,rw {}`, or let `lifemon track on` mount one of its own",
                    place.display()
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_leaves_nothing() {
        let name = format!("lifemon-doctor-{}", std::process::id());
        for check in [user_namespace(), signals(), processes(), pins()] {
            assert!(!check.detail.is_empty(), "{check:?}");
            assert_eq!(
                check.remedy.is_none(),
                check.state == State::Ok,
                "{check:?}"
            );
        }
        assert!(!Path::new(place::SHARED).join(name).exists());
    }
}

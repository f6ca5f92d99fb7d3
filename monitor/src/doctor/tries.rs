//! Checks of what lifemon needs besides the tracker, each by doing it: a signal to a process of
//! somebody else, a look at `/proc`, a directory in the BPF file system. Nothing is left of it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{Pid, geteuid};

use super::{Check, State};
use crate::kernel::place;
use crate::proc;

/// Inode of the initial user namespace, `PROC_USER_INIT_INO` in the kernel.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

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

/// Asks whether process 1 may be signalled, and so everybody.
pub(super) fn signals() -> Check {
    const NAME: &str = "signals";
    match kill(Pid::from_raw(1), None) {
        Ok(()) => Check::ok(NAME, "every process may be signalled"),
        Err(Errno::EPERM) => Check::with(
            NAME,
            State::Degraded,
            "only processes of the same user may be signalled: CAP_KILL is missing",
            "run as root, or grant CAP_KILL, to kill the processes of others",
        ),
        Err(errno) => Check::with(
            NAME,
            State::Degraded,
            format!("process 1 may not be signalled: {errno}"),
            "see what forbids it: a security module, perhaps",
        ),
    }
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

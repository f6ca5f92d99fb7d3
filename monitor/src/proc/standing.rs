//! The standing of a process: its user, capabilities, namespaces and container, as they are now.
//! The caller checks that the pid still belongs to the process that it means.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use super::placement::container_in;
use crate::sys::{namespace, text};

/// The namespaces that say whose host a process sees, by their inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Namespaces {
    /// Its pid namespace.
    pub(crate) pid: u64,
    /// Its user namespace.
    pub(crate) user: u64,
}

/// Returns the namespaces of whoever has this pid.
pub(crate) fn namespaces(pid: u32) -> Option<Namespaces> {
    let inode = |kind| Some(fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?.ino());
    Some(Namespaces {
        pid: inode("pid")?,
        user: inode("user")?,
    })
}

/// User namespaces in each other at most, as the kernel limits them:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/user_namespace.c?h=v6.12.118#n97>.
const USER_NAMESPACES_MAX: usize = 33;

/// Returns the users that have made the user namespaces which whoever has this pid is in, from its
/// own outwards, up to the one with this inode: that is where the look ends.
///
/// # Errors
/// When the namespaces cannot be opened.
pub(crate) fn makers_of_user_namespaces(pid: u32, up_to: u64) -> io::Result<Vec<u32>> {
    let mut at = fs::File::open(format!("/proc/{pid}/ns/user"))?;
    let mut makers = Vec::new();
    while at.metadata()?.ino() != up_to && makers.len() < USER_NAMESPACES_MAX {
        makers.push(namespace::owner(&at)?);
        at = match namespace::parent(&at) {
            Ok(parent) => parent.into(),
            // What is above is not for this process to know.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            Err(error) => return Err(error),
        };
    }
    Ok(makers)
}

/// What the kernel lets a process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its real user.
    pub(crate) uid: u32,
    /// Its effective capabilities.
    pub(crate) capabilities: u64,
}

/// Returns the credentials of whoever has this pid.
pub(crate) fn credentials(pid: u32) -> Option<Credentials> {
    parse_credentials(&text::read(format!("/proc/{pid}/status")).ok()?)
}

/// Returns the user whom the kernel lets look into whoever has this pid: root, where that one has
/// taken on another user than its real one, or is not to be looked into
/// (<https://man7.org/linux/man-pages/man5/proc_pid.5.html>).
pub(crate) fn owner(pid: u32) -> Option<u32> {
    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

fn parse_credentials(status: &str) -> Option<Credentials> {
    // The name is chosen by the process, and comes first; a newline in it is escaped there.
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let uid = field("Uid")?.split_whitespace().next()?.parse().ok()?;
    let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
    Some(Credentials { uid, capabilities })
}

/// Returns the pid of the process that a pidfd of ours is of; `None` where it is no pidfd, or the
/// process is gone.
pub(crate) fn pid_of_pidfd(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = text::read(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid != 0)
}

/// The control group of a container: in one hierarchy, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ContainerGroup {
    /// Controllers of the hierarchy; empty for version 2.
    controllers: String,
    /// Path of the container's own group.
    path: String,
    /// Root has made it. Others can make groups that are called so, below those that are theirs.
    #[serde(default)]
    is_roots: bool,
}

impl ContainerGroup {
    /// Returns whether whoever has this pid is in it.
    pub(crate) fn has(&self, pid: u32) -> bool {
        let text = text::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.is_in(&text)
    }

    fn is_in(&self, text: &str) -> bool {
        let path = paths(text).find(|(controllers, _)| *controllers == self.controllers);
        let below = path.and_then(|(_, path)| path.strip_prefix(self.path.as_str()));
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    /// Returns the path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns whether root has made it, as far as that can be known.
    pub(crate) fn is_roots(&self) -> bool {
        self.is_roots
    }

    fn owner(&self) -> Option<u32> {
        // Hierarchies of version 1 are called as their controllers; beside them stands version 2.
        let hierarchies = match self.controllers.strip_prefix("name=") {
            Some(name) => [name, ""],
            None if self.controllers.is_empty() => ["", "unified"],
            None => [self.controllers.as_str(), ""],
        };
        hierarchies.iter().find_map(|hierarchy| {
            let group = format!("/sys/fs/cgroup/{hierarchy}{}", self.path);
            Some(fs::metadata(group).ok()?.uid())
        })
    }
}

/// Returns the container that whoever has this pid is in, the outermost one.
pub(crate) fn container_group(pid: u32) -> Option<ContainerGroup> {
    let text = text::read(format!("/proc/{pid}/cgroup")).ok()?;
    let group = group_in(&text)?;
    Some(ContainerGroup {
        is_roots: group.owner() == Some(0),
        ..group
    })
}

fn group_in(text: &str) -> Option<ContainerGroup> {
    paths(text).find_map(|(controllers, path)| {
        let mut own = String::new();
        for part in path.split('/').skip(1) {
            own = own + "/" + part;
            if container_in(part).is_some() {
                let controllers = controllers.to_owned();
                return Some(ContainerGroup {
                    controllers,
                    path: own,
                    is_roots: false,
                });
            }
        }
        None
    })
}

fn paths(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_standing_of_this_process() {
        let own = std::process::id();
        let credentials = credentials(own).unwrap();
        assert_eq!(credentials.uid, nix::unistd::getuid().as_raw());
        assert!(namespaces(own).is_some());
        assert_eq!(namespaces(u32::MAX / 4), None);
        let pidfd = crate::sys::pidfd::open(own).unwrap();
        assert_eq!(pid_of_pidfd(pidfd.as_fd()), Some(own));
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(pid_of_pidfd(file.as_fd()), None);
    }

    #[test]
    fn a_container_is_its_group_and_all_below_it() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!("0::/kubepods.slice/cri-containerd-{id}.scope/inner\n");
        let group = group_in(&text).unwrap();
        assert!(group.path().contains(&id) && !group.path().contains("inner"));
        assert!(group.is_in(&text));
        assert!(group.is_in(&format!("0::/kubepods.slice/cri-containerd-{id}.scope\n")));
        assert!(!group.is_in(&format!("0::/kubepods.slice/cri-containerd-{id}.scopes\n")));
        assert!(!group.is_in("0::/kubepods.slice\n"));
        assert!(!group.is_in(&format!(
            "1:pids:/kubepods.slice/cri-containerd-{id}.scope\n0::/\n"
        )));
        assert_eq!(group_in("0::/user.slice/user-1000.slice\n"), None);
    }
}

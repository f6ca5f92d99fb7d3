//! A caller: who it is by the kernel's word, what it may, and whom it sees.
//!
//! The race: between connecting and the look into `/proc` a caller can end and its pid be taken by
//! somebody with more rights. The pidfd of the peer settles it: it is of the process that has
//! connected, and as long as that is not gone, its pid is its own. On kernels without it, the start
//! of the process is read before and after, and its live uid has to be that of the peer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::ProcessId;
use crate::proc::{self, ContainerGroup, Namespaces};
use crate::sys::{peer, pidfd};

use super::rights::{Facts, Reach, Rights, decide};

/// The place of the agent itself, and the groups that have rights.
#[derive(Debug, Clone)]
pub(super) struct Host {
    namespaces: Namespaces,
    container: Option<ContainerGroup>,
    readers: Option<u32>,
    killers: Option<u32>,
}

impl Host {
    /// Looks at this process, and for the groups.
    pub(super) fn look(readers: &str, killers: &str) -> io::Result<Self> {
        let own = std::process::id();
        let group = |name: &str| {
            let group = nix::unistd::Group::from_name(name).ok().flatten();
            group
                .map(|group| group.gid.as_raw())
                .filter(|gid| *gid != 0)
        };
        let missing = || io::Error::other("/proc does not show the namespaces of this process");
        Ok(Self {
            namespaces: proc::namespaces(own).ok_or_else(missing)?,
            container: proc::container_group(own),
            readers: group(readers),
            killers: group(killers),
        })
    }
}

/// A caller.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its process, to a clock tick.
    pub(super) process: ProcessId,
    /// Its effective uid when it connected.
    pub(super) uid: u32,
    /// Its effective gid when it connected.
    pub(super) gid: u32,
    /// What it may.
    pub(super) rights: Rights,
    /// The namespaces that it was in.
    pub(super) namespaces: Namespaces,
    /// Its container.
    pub(super) container: Option<ContainerGroup>,
    /// The user whom its limits are counted for.
    payer: u32,
    pidfd: OwnedFd,
}

impl Peer {
    /// Finds out who is at the other end.
    ///
    /// # Errors
    /// When it is gone, or not of this pid namespace or one below.
    pub(super) fn of(socket: &impl AsFd, host: &Host) -> io::Result<Self> {
        let gone = || io::Error::other("the process that has connected is gone");
        let credentials = peer::credentials(socket)?;
        let given = peer::pidfd(socket)?;
        let is_given = given.is_some();
        let pidfd = match given {
            Some(pidfd) => pidfd,
            None => pidfd::open(credentials.pid)?,
        };
        let pid = proc::pid_of_pidfd(pidfd.as_fd()).ok_or_else(gone)?;
        let process = proc::identify(pid).ok_or_else(gone)?;
        let namespaces = proc::namespaces(pid).ok_or_else(gone)?;
        let live = proc::credentials(pid).ok_or_else(gone)?;
        let container =
            proc::container_group(pid).filter(|own| Some(own) != host.container.as_ref());
        let makers = proc::makers_of_user_namespaces(pid, host.namespaces.user)?;
        let is_same = proc::owns_pid(process) && (is_given || live.uid == credentials.uid);
        // Last: all that was read is of the process that has connected.
        if !is_same || pidfd::is_gone(&pidfd)? {
            return Err(gone());
        }
        let is_in = |group: Option<u32>| {
            group.is_some_and(|group| {
                credentials.gid == group || credentials.groups.contains(&group)
            })
        };
        let rights = decide(&Facts {
            uid: credentials.uid,
            has_host_pids: namespaces.pid == host.namespaces.pid,
            has_host_users: namespaces.user == host.namespaces.user,
            is_in_container: container.is_some(),
            capabilities: live.capabilities,
            is_reader: is_in(host.readers),
            is_killer: is_in(host.killers),
        });
        Ok(Self {
            process,
            uid: credentials.uid,
            gid: credentials.gid,
            rights,
            namespaces,
            container,
            payer: payer(credentials.uid, &makers),
            pidfd,
        })
    }

    /// Returns whether it is there still: then its pid is its own.
    pub(super) fn is_there(&self) -> bool {
        matches!(pidfd::is_gone(&self.pidfd), Ok(false))
    }

    /// Returns whether it is the operator of this host: what it asks comes first.
    pub(super) fn is_operator(&self) -> bool {
        self.uid == 0 && self.rights.ends == Reach::All && self.rights.sees == Reach::All
    }

    /// Returns to whom belongs what it makes: others of the same may look at it and end it.
    pub(super) fn account(&self) -> String {
        self.account_of(self.uid)
    }

    /// Returns whom its limits are counted for: others of the same share them. The subordinate
    /// users of a user do, and are others all the same.
    pub(super) fn budget(&self) -> String {
        self.account_of(self.payer)
    }

    fn account_of(&self, uid: u32) -> String {
        match &self.container {
            _ if self.is_operator() => "root".to_owned(),
            // Other groups and namespaces anybody can make, as many as are wanted.
            Some(container) if container.is_roots() => format!("uid {uid} in {}", container.path()),
            None if uid == 0 => format!("uid {uid} in {}", self.namespaces.pid),
            _ => format!("uid {uid}"),
        }
    }

    /// Returns the processes that it sees, or that it may end.
    pub(super) fn scope(&self, reach: Reach) -> Scope {
        Scope {
            reach,
            uid: self.uid,
            namespaces: self.namespaces,
            container: self.container.clone(),
        }
    }
}

/// Returns the user whom the limits of a caller are counted for, from its own uid and the makers of
/// the user namespaces that it is in, its own first. A user can give processes any uid of a range
/// that is subordinate to it, but only in a user namespace that it has made, or in one below. Of
/// several it is the outermost that says who the user of the host is. In those that root has made,
/// for containers, each uid stands for itself.
fn payer(uid: u32, makers: &[u32]) -> u32 {
    let of_users = makers.iter().rev();
    let outermost = of_users.copied().find(|maker| *maker != 0);
    outermost.filter(|_| uid != 0).unwrap_or(uid)
}

/// A set of living processes, as they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scope {
    reach: Reach,
    uid: u32,
    namespaces: Namespaces,
    container: Option<ContainerGroup>,
}

impl Scope {
    /// Returns whether it is everything.
    pub(super) fn is_all(&self) -> bool {
        self.reach == Reach::All
    }

    /// Returns the uid of a set that ghosts can be counted to by their record.
    pub(super) fn uid_of_ghosts(&self) -> Option<u32> {
        (self.reach == Reach::User).then_some(self.uid)
    }

    /// Returns whether it has this living process.
    pub(super) fn has(&self, id: ProcessId) -> bool {
        let has = self.bounds(id.pid)
            && match self.reach {
                Reach::All | Reach::Container => true,
                Reach::User | Reach::Namespaces => {
                    let live = proc::credentials(id.pid);
                    live.is_some_and(|live| live.uid == self.uid)
                }
            };
        has && (self.is_all() || proc::owns_pid(id))
    }

    /// Returns whether the asker may know what a process that it sees has open: where a uid alone
    /// decides, that uid has to be able to look itself.
    pub(super) fn looks_into(&self, id: ProcessId) -> bool {
        let is_roots = |container: &ContainerGroup| container.is_roots();
        match self.reach {
            Reach::All => true,
            Reach::Container if self.container.as_ref().is_some_and(is_roots) => true,
            _ => proc::owner(id.pid) == Some(self.uid) && proc::owns_pid(id),
        }
    }

    /// Returns whether whoever has this pid is within the bounds of the set, whatever its uid.
    pub(super) fn bounds(&self, pid: u32) -> bool {
        match self.reach {
            Reach::All | Reach::User => true,
            Reach::Namespaces => proc::namespaces(pid) == Some(self.namespaces),
            Reach::Container => {
                let container = self.container.as_ref();
                container.is_some_and(|container| container.has(pid))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_counted_for_the_user_who_has_made_the_outermost_namespace() {
        const SUBORDINATE: u32 = 100_005;
        assert_eq!(payer(1_000, &[]), 1_000);
        assert_eq!(payer(1_000, &[1_000]), 1_000);
        assert_eq!(payer(SUBORDINATE, &[1_000]), 1_000);
        // It has made one of its own there.
        assert_eq!(payer(SUBORDINATE, &[SUBORDINATE, 1_000]), 1_000);
        // In the namespace of a container that root has made.
        assert_eq!(payer(SUBORDINATE, &[0]), SUBORDINATE);
        assert_eq!(payer(SUBORDINATE, &[100_001, 0]), 100_001);
        // Root has gone there itself.
        assert_eq!(payer(0, &[1_000]), 0);
    }
}

//! The maps of watched trees as userspace reaches them. What is done with them ([`super::slots`],
//! [`super::label`]) goes through a trait: so that the tests can stop between any two calls, and
//! let the kernel half and other commands go on there.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use lifemon_ebpf::{MemberKey, Membership, ProcessId, limits};

use super::shared::{HostView, Shared, TreeView};
use super::{Error, sys};

/// The maps of watched trees. Each call is one step: the kernel carries it out as a whole.
pub(super) trait Maps {
    /// A ring of a watcher.
    type Ring<'a>: Copy;

    /// Returns the shared memory of a slot; slot 0 is the host. Asked again for each access, so
    /// that each is a step.
    fn tree(&self, slot: u32) -> &TreeView;
    /// Returns what holds for the whole tracker.
    fn host(&self) -> &HostView;

    /// Reads all memberships.
    fn members(&self) -> io::Result<Vec<(MemberKey, Membership)>>;
    /// Reads one.
    fn member(&self, key: &MemberKey) -> io::Result<Option<Membership>>;
    /// Inserts one; false where there is one already.
    fn insert_member(&self, key: &MemberKey, membership: Membership) -> io::Result<bool>;
    /// Deletes one; false where there is none.
    fn delete_member(&self, key: &MemberKey) -> io::Result<bool>;

    /// Reads the marks of watched roots.
    fn roots(&self) -> io::Result<Vec<ProcessId>>;
    /// Marks a root: its ghost stays.
    fn mark_root(&self, root: &ProcessId) -> io::Result<()>;
    /// Removes a mark.
    fn unmark_root(&self, root: &ProcessId) -> io::Result<()>;

    /// Brings the ring of a slot, and waits until all running programs have ended.
    fn set_ring(&self, slot: u32, ring: Self::Ring<'_>) -> io::Result<()>;
    /// Takes it away, and waits in the same way; false where there is none, and nothing was waited
    /// for.
    fn delete_ring(&self, slot: u32) -> io::Result<bool>;
    /// Waits until all programs have ended that run now.
    fn wait_for_running_programs(&self) -> io::Result<()>;
}

/// Those of a tracker, in the kernel.
pub(super) struct TreeMaps {
    trees: Shared<TreeView>,
    host: Shared<HostView>,
    members: OwnedFd,
    roots: OwnedFd,
    rings: OwnedFd,
}

impl TreeMaps {
    /// Opens the maps, which `map` gives by their names.
    ///
    /// # Errors
    /// When `map` fails, or a map cannot be mapped.
    pub(super) fn open(
        map: impl Fn(&'static str) -> Result<OwnedFd, Error>,
    ) -> Result<Self, Error> {
        let trees = Shared::new(map("TREES")?, limits::TREE_SLOTS as usize).map_err(Error::Map)?;
        Ok(Self {
            trees,
            host: Shared::new(map("HOST")?, 1).map_err(Error::Map)?,
            members: map("MEMBERS")?,
            roots: map("ROOTS")?,
            rings: map("RINGS")?,
        })
    }
}

/// In the kernel, setting and deleting a ring return after every running program has ended:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n145>
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/bpf/syscall.c?h=v6.12.118#n157>
impl Maps for TreeMaps {
    type Ring<'a> = BorrowedFd<'a>;

    fn tree(&self, slot: u32) -> &TreeView {
        self.trees.at(slot as usize)
    }

    fn host(&self) -> &HostView {
        self.host.at(0)
    }

    fn members(&self) -> io::Result<Vec<(MemberKey, Membership)>> {
        sys::read_all(self.members.as_fd())
    }

    fn member(&self, key: &MemberKey) -> io::Result<Option<Membership>> {
        sys::lookup(self.members.as_fd(), key)
    }

    fn insert_member(&self, key: &MemberKey, membership: Membership) -> io::Result<bool> {
        sys::insert(self.members.as_fd(), key, &membership)
    }

    fn delete_member(&self, key: &MemberKey) -> io::Result<bool> {
        sys::delete(self.members.as_fd(), key)
    }

    fn roots(&self) -> io::Result<Vec<ProcessId>> {
        let marked = sys::read_all::<ProcessId, u64>(self.roots.as_fd())?.into_iter();
        Ok(marked.map(|(root, _)| root).collect())
    }

    fn mark_root(&self, root: &ProcessId) -> io::Result<()> {
        sys::update(self.roots.as_fd(), root, &1_u64)
    }

    fn unmark_root(&self, root: &ProcessId) -> io::Result<()> {
        sys::delete(self.roots.as_fd(), root).map(drop)
    }

    fn set_ring(&self, slot: u32, ring: BorrowedFd<'_>) -> io::Result<()> {
        let ring = ring.as_raw_fd().cast_unsigned();
        sys::update(self.rings.as_fd(), &slot, &ring)
    }

    fn delete_ring(&self, slot: u32) -> io::Result<bool> {
        sys::delete(self.rings.as_fd(), &slot)
    }

    fn wait_for_running_programs(&self) -> io::Result<()> {
        sys::wait_for_running_programs()
    }
}

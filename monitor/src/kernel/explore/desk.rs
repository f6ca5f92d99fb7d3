//! The maps of the model, as one command reaches them: each access is a step, and the command can be
//! killed at any of them. From then on it changes nothing.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use lifemon_ebpf::records::EEXIST;
use lifemon_ebpf::{MemberKey, Membership, ProcessId};

use super::super::maps::Maps;
use super::super::shared::{HostView, TreeView};
use super::world::World;

/// Buckets of a map: each is read in one step.
pub(super) const BUCKETS: u32 = 3;

/// The maps, as one command reaches them.
pub(super) struct Desk {
    world: Arc<World>,
    /// Steps until it is killed.
    left: Cell<Option<u32>>,
    /// What a dead command writes to.
    grave: (TreeView, HostView),
}

impl Desk {
    /// Returns that of a command that is killed after so many steps, if any.
    pub(super) fn new(world: &Arc<World>, killed_after: Option<u32>) -> Self {
        Self {
            world: Arc::clone(world),
            left: Cell::new(killed_after),
            grave: Default::default(),
        }
    }

    /// Returns whether the command was killed.
    pub(super) fn is_dead(&self) -> bool {
        self.left.get() == Some(0)
    }

    /// Counts a step; false once the command is dead.
    fn lives(&self) -> bool {
        let Some(left) = self.left.get() else {
            return true;
        };
        self.left.set(Some(left.saturating_sub(1)));
        left > 0
    }

    /// Returns the world for one more step.
    ///
    /// # Errors
    /// Once the command is dead.
    pub(super) fn try_step(&self) -> io::Result<&World> {
        let dead = || io::Error::other("this command was killed");
        self.lives().then_some(&*self.world).ok_or_else(dead)
    }
}

impl Maps for Desk {
    type Ring<'a> = ();

    fn tree(&self, slot: u32) -> &TreeView {
        if self.lives() {
            self.world.tree(slot)
        } else {
            &self.grave.0
        }
    }

    fn host(&self) -> &HostView {
        if self.lives() {
            self.world.yield_now();
            &self.world.host
        } else {
            &self.grave.1
        }
    }

    fn members(&self) -> io::Result<Vec<(MemberKey, Membership)>> {
        let mut found = Vec::new();
        for bucket in 0..BUCKETS {
            self.try_step()?.step(|state| {
                let all = state.members.iter();
                let here = all.filter(|(key, _)| key.process.pid % BUCKETS == bucket);
                found.extend(here.map(|(key, value)| (*key, *value)));
            });
        }
        Ok(found)
    }

    fn member(&self, key: &MemberKey) -> io::Result<Option<Membership>> {
        Ok(self.try_step()?.step(|state| state.members.get(key)))
    }

    fn insert_member(&self, key: &MemberKey, membership: Membership) -> io::Result<bool> {
        let inserted = self
            .try_step()?
            .step(|state| state.members.insert(*key, membership));
        match inserted {
            Ok(()) => Ok(true),
            Err(EEXIST) => Ok(false),
            Err(code) => Err(io::Error::from_raw_os_error(-code)),
        }
    }

    fn delete_member(&self, key: &MemberKey) -> io::Result<bool> {
        let deleted = self.try_step()?.step(|state| state.members.remove(key));
        Ok(deleted.is_ok())
    }

    fn roots(&self) -> io::Result<Vec<ProcessId>> {
        let world = self.try_step()?;
        Ok(world.step(|state| state.roots.iter().copied().collect()))
    }

    fn mark_root(&self, root: &ProcessId) -> io::Result<()> {
        self.try_step()?.step(|state| state.roots.insert(*root));
        Ok(())
    }

    fn unmark_root(&self, root: &ProcessId) -> io::Result<()> {
        self.try_step()?.step(|state| state.roots.remove(root));
        Ok(())
    }

    fn set_ring(&self, slot: u32, (): ()) -> io::Result<()> {
        self.try_step()?
            .step(|state| state.rings.insert(slot, Vec::new()));
        self.wait_for_running_programs()
    }

    fn delete_ring(&self, slot: u32) -> io::Result<bool> {
        let was_there = self.try_step()?.step(|state| state.rings.remove(&slot));
        if was_there.is_some() {
            self.wait_for_running_programs()?;
        }
        Ok(was_there.is_some())
    }

    fn wait_for_running_programs(&self) -> io::Result<()> {
        self.try_step()?.wait_for_running_programs();
        // It may have been killed while it waited.
        self.try_step().map(drop)
    }
}

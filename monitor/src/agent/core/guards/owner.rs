//! The owners of guards: a descriptor of each, and a task that waits for its end. Where no
//! descriptor is left for one, it is tried again with what the agent has to do anyway.

use std::os::fd::OwnedFd;
use std::sync::{Arc, TryLockError};

use super::Guards;
use super::ending::state;
use super::entry::{Cause, State};
use crate::agent::core::{Core, lock};
use crate::agent::problem::{Code, Problem};
use crate::sys::pidfd;
use crate::{ProcessId, proc};

/// Waits for the owners that are not waited for yet, as far as there are descriptors now.
pub(in crate::agent::core) fn attend(core: &Arc<Core>) {
    if unattended(core).is_empty() {
        return;
    }
    let core = Arc::clone(core);
    // Reading the lineage takes a while.
    tokio::task::spawn_blocking(move || {
        // Somebody else does it at this moment.
        let attending = core.guards().attending.try_lock();
        if matches!(attending, Err(TryLockError::WouldBlock)) {
            return;
        }
        for (id, owner) in unattended(&core) {
            if attend_one(&core, &id, owner).is_err() {
                // For the others there is none either.
                return;
            }
        }
    });
}

fn unattended(core: &Core) -> Vec<(String, ProcessId)> {
    let guards = lock(&core.guards().entries);
    let unattended = guards
        .iter()
        .filter(|(_, entry)| matches!(entry.state(), State::Unattended));
    unattended
        .map(|(id, entry)| (id.clone(), entry.guard.owner))
        .collect()
}

/// Waits for the owner of a guard, which fires where that is dead already.
pub(super) fn attend_one(core: &Arc<Core>, id: &str, owner: ProcessId) -> Result<(), Problem> {
    match open_owner(core, owner)? {
        Some(pidfd) => wait_for(core, id, pidfd),
        // Its ghost, or that nothing is left of it, says so.
        None => Guards::fire(core, id, Cause::OwnerDied),
    }
    Ok(())
}

/// Waits for an owner's end, in a task of its own.
pub(super) fn wait_for(core: &Arc<Core>, id: &str, pidfd: OwnedFd) {
    let (core_, of) = (Arc::clone(core), id.to_owned());
    let mut guards = lock(&core.guards().entries);
    let Some(entry) = guards.get_mut(id) else {
        return;
    };
    // Under the lock with the state: the task finds the guard armed.
    let waiting = tokio::spawn(async move {
        if pidfd::wait_until_gone(pidfd).await {
            Guards::fire(&core_, &of, Cause::OwnerDied);
        } else {
            log::warn!("guard {of}: its owner cannot be waited for now; it is tried again");
            if let Some(entry) = lock(&core_.guards().entries).get_mut(&of) {
                entry.enter(State::Unattended);
            }
        }
    });
    entry.enter(State::Armed(waiting.abort_handle()));
}

/// Opens a descriptor of an owner; `None` where it is dead.
pub(super) fn open_owner(core: &Core, owner: ProcessId) -> Result<Option<OwnedFd>, Problem> {
    // Race: without a record it may be dead, or have been lost to a full map. `/proc` decides then.
    let is_live = |core: &Core| {
        let snapshot = core.snapshot()?;
        let state = state(&snapshot, owner);
        Ok::<_, Problem>(state.unwrap_or_else(|| !proc::is_gone(owner)))
    };
    if !is_live(core)? {
        return Ok(None);
    }
    let pidfd = match pidfd::open(owner.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(Problem::new(Code::Unavailable, error.to_string())),
    };
    // The record is still live: the descriptor is that of the owner.
    Ok(is_live(core)?.then_some(pidfd))
}

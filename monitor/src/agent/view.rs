//! A snapshot of the lineage as a caller may see it, and the processes that it names in it.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use lifemon_ebpf::{LIVE, LogEntry, Record, SENDER_KNOWN};

use crate::ProcessId;
use crate::deaths;
use crate::forest::Forest;
use crate::kernel::recorder::Log;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, Zombie};
use crate::process::is_same_process;

use super::handles::Handles;
use super::naming::Name;
use super::peer::{Peer, Scope};
use super::problem::{Code, Problem};
use super::rights::Reach;

/// A snapshot with a caller's eyes.
pub(super) struct View<'a> {
    snapshot: &'a Snapshot,
    peer: &'a Peer,
    scope: Scope,
    /// Whether a living process is seen: each is looked at once.
    seen: RefCell<HashMap<ProcessId, bool>>,
    /// Control groups in which all that lives is seen, and something does.
    groups: RefCell<Option<HashSet<u64>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, peer: &'a Peer) -> Self {
        Self {
            snapshot,
            peer,
            scope: peer.scope(peer.rights.sees),
            seen: RefCell::default(),
            groups: RefCell::default(),
        }
    }

    /// Returns whether it is everything.
    pub(super) fn is_all(&self) -> bool {
        self.scope.is_all()
    }

    /// Returns whether the caller sees a process.
    pub(super) fn shows(&self, id: &ProcessId, record: &Record) -> bool {
        if self.is_all() {
            return true;
        }
        if record.state == LIVE {
            return self.shows_living(*id);
        }
        // A ghost has no credentials any more: what its record has is of its last exec.
        if let Some(uid) = self.scope.uid_of_ghosts() {
            return record.uid == uid;
        }
        let mut groups = self.groups.borrow_mut();
        let groups = groups.get_or_insert_with(|| self.whole_groups());
        groups.contains(&record.cgroup_id)
    }

    /// Returns whether the caller sees a process by its identity.
    pub(super) fn shows_id(&self, id: &ProcessId) -> bool {
        if self.is_all() {
            return true;
        }
        let record = self.snapshot.records.iter().find(|(known, _)| known == id);
        record.is_some_and(|(id, record)| self.shows(id, record))
    }

    fn shows_living(&self, id: ProcessId) -> bool {
        let known = self.seen.borrow().get(&id).copied();
        known.unwrap_or_else(|| {
            let shown = self.scope.has(id);
            self.seen.borrow_mut().insert(id, shown);
            shown
        })
    }

    /// Returns the control groups that belong to what the caller sees. Version 1 has one for all.
    fn whole_groups(&self) -> HashSet<u64> {
        let living = self.snapshot.records.iter();
        let living = living.filter(|(_, record)| record.state == LIVE);
        let (mut whole, mut mixed) = (HashSet::new(), HashSet::new());
        for (id, record) in living {
            let groups = if self.shows_living(*id) {
                &mut whole
            } else {
                &mut mixed
            };
            groups.insert(record.cgroup_id);
        }
        whole.difference(&mixed).copied().collect()
    }

    /// Finds the process that the caller names, of those that it sees.
    ///
    /// # Errors
    /// [`Code::NoSuchProcess`], [`Code::Forbidden`].
    pub(super) fn find(&self, name: &Name, handles: &Handles) -> Result<ProcessId, Problem> {
        let id = self.named(name, handles)?;
        let missing = || Problem::new(Code::NoSuchProcess, format!("no process {name}"));
        let id = id.ok_or_else(missing)?;
        if self.shows_id(&id) {
            return Ok(id);
        }
        if self.scope.uid_of_ghosts().is_none() {
            // What is outside of its container is nothing that it should know of.
            return Err(missing());
        }
        let detail = format!(
            "process {name} is not one of uid {}; members of lifemon-read see all",
            self.peer.uid
        );
        Err(Problem::new(Code::Forbidden, detail))
    }

    /// Finds a zombie that the caller sees and names exactly, and of which there is no record any
    /// more.
    pub(super) fn find_zombie(&self, name: &Name) -> Option<Zombie> {
        let Name::Exact { pid, start_ns } = name else {
            return None;
        };
        let id = ProcessId::new(*pid, *start_ns);
        let zombie = proc::zombie(*pid).filter(|_| proc::owns_pid(id))?;
        (self.snapshot.live(*pid).is_none() && self.scope.has(zombie.id)).then_some(zombie)
    }

    /// Finds a process by its death, of those whose deaths the caller sees. A pid alone is that of
    /// the host, for whoever has that.
    pub(super) fn find_death(&self, name: &Name, log: &Log) -> Option<ProcessId> {
        let is_meant = |entry: &LogEntry| {
            let is_named = match name {
                Name::Exact { pid, start_ns } => {
                    is_same_process(entry.process, ProcessId::new(*pid, *start_ns))
                }
                Name::InNamespace(pid) => entry.process.pid == *pid && entry.ns_pid == *pid,
                Name::Oneself | Name::Handle(_) => false,
            };
            is_named && self.shows_death(entry)
        };
        deaths::latest(log, is_meant)
    }

    /// Returns whether the caller sees a death that was recorded: one of its uid. In a container it
    /// is that of a ghost that belongs to it.
    pub(super) fn shows_death(&self, entry: &LogEntry) -> bool {
        match self.uid() {
            Some(uid) => entry.uid == uid,
            None => self.shows_id(&entry.process),
        }
    }

    /// Returns the user whose processes are all that is seen, if it is one of the host.
    pub(super) fn uid(&self) -> Option<u32> {
        self.scope.uid_of_ghosts()
    }

    /// Takes who sent the signal out of a death, where the caller should not know of that one. A
    /// user of the host knows: the kernel tells the pid of the sender to whom it sends a signal.
    pub(super) fn hide_sender(&self, entry: &mut LogEntry) {
        if self.uid().is_none() && !self.shows_id(&entry.sender) {
            entry.flags &= !SENDER_KNOWN;
        }
    }

    /// Returns the lineage of those that the caller sees: no other has a name in it.
    pub(super) fn forest(&self) -> Forest {
        let records = self.snapshot.records.iter().copied();
        Forest::new(records.filter(|(id, record)| self.shows(id, record)))
    }

    fn named(&self, name: &Name, handles: &Handles) -> Result<Option<ProcessId>, Problem> {
        let live = |pid| self.snapshot.live(pid).map(|(id, _)| *id);
        Ok(match name {
            Name::Oneself => {
                let found = live(self.peer.process.pid);
                if !self.peer.is_there() {
                    let detail = "the process that has connected has ended: it cannot mean itself";
                    return Err(Problem::new(Code::PeerGone, detail));
                }
                found
            }
            Name::Exact { pid, start_ns } => self.snapshot.exact(ProcessId::new(*pid, *start_ns)),
            Name::InNamespace(pid) => self.in_namespace(*pid),
            Name::Handle(token) => handles
                .find(token, self.peer)
                .and_then(|id| self.snapshot.exact(id)),
        })
    }

    /// Finds the living process that has this pid in the caller's own pid namespace.
    fn in_namespace(&self, pid: u32) -> Option<ProcessId> {
        let own = self.peer.namespaces.pid;
        let mut records = self.snapshot.records.iter();
        let is_meant = |(id, record): &&(ProcessId, Record)| {
            let has_pid = record.state == LIVE && record.ns_pid == pid;
            has_pid
                && proc::namespaces(id.pid).is_some_and(|found| found.pid == own)
                && proc::owns_pid(*id)
        };
        records.find(is_meant).map(|(id, _)| *id)
    }

    /// Returns whether the caller may end a living process, as far as its bounds go; the kernel
    /// decides about the rest.
    pub(super) fn may_reach(&self, id: ProcessId) -> bool {
        let ends = self.peer.scope(self.peer.rights.ends);
        self.peer.rights.ends == Reach::All || (ends.bounds(id.pid) && proc::owns_pid(id))
    }
}

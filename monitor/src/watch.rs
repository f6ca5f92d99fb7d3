//! A watched tree as a model: a snapshot, then one event after the other. Decides what each event
//! means (which process died, which are orphaned by it) and recovers from loss by comparing itself
//! with the kernel's membership map, which is truth. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lifemon_ebpf::{
    EVENT_EXEC, EVENT_EXIT, EVENT_FORK, EVENT_RENAME, EVENT_SIGNAL, Event, PARENT_DEATH, ProcessId,
};
use serde::{Deserialize, Serialize};

use crate::process::{
    Cause, Death, Died, Name, Process, Sender, Signal, Who, is_same_process, sender,
};

/// Something that happened to a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Happening {
    /// Time in ns since boot; `None` when only the fact is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ns: Option<u64>,
    /// To whom.
    pub process: Process,
    /// Its creator, with the name when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<Who>,
    /// The change.
    pub what: What,
    /// True if its event was lost, and the comparison with the kernel's map has found it.
    pub resynced: bool,
}

impl Happening {
    /// Returns the age of the process when it happened, in ms; `None` when the time is not known.
    #[must_use]
    pub fn age_ms(&self) -> Option<u64> {
        self.at_ns
            .map(|at| at.saturating_sub(self.process.id.start_ns) / 1_000_000)
    }
}

/// A change of a process or of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// It was created.
    Fork,
    /// It runs another program.
    Exec,
    /// A signal that can end it was delivered.
    Signal {
        /// The number.
        signal: Signal,
        /// The sender.
        sender: Option<Sender>,
        /// True if it is the one that the process wanted to get at the death of its parent.
        #[serde(default)]
        parent_death: bool,
    },
    /// It is dying.
    Exit {
        /// Its death; `None` when its event was lost and it left no ghost.
        death: Option<Death>,
        /// Its children that are alive: orphans from now on.
        orphans: Vec<Who>,
    },
    /// Its memory and files are released.
    Gone {
        /// Since it began to die, in ns; `None` when that is not known.
        after_ns: Option<u64>,
    },
    /// Its creator has died and is gone: it has another parent now.
    Orphaned {
        /// True if the root of the tree is live.
        root_alive: bool,
    },
}

/// A member that is alive, or dead and still needed to name the creator of the living.
#[derive(Debug, Clone)]
struct Node {
    process: Process,
    /// Living children.
    children: BTreeSet<ProcessId>,
    /// Time of its death (*dying*), in ns since boot.
    died_ns: Option<u64>,
    /// Dead and gone, or a ghost of the snapshot: kept for its name alone.
    is_gone: bool,
}

/// Counts of a watched tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Members that were seen, those of the snapshot included.
    pub seen: u64,
    /// Deaths by cause.
    pub exits: BTreeMap<Cause, u64>,
    /// Deaths of which only the fact is known, because their events were lost.
    pub exits_unknown: u64,
    /// Happenings that only the comparison with the kernel's map has found.
    pub resynced: u64,
}

/// The description of a process from the records, in a comparison.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The process; `None` without a record.
    pub process: Option<Process>,
    /// Time and kind of its death, if it is dead.
    pub died: Option<Died>,
}

/// The model of a watched tree.
#[derive(Debug, Clone)]
pub struct Watch {
    root: ProcessId,
    alive: HashMap<ProcessId, Node>,
    /// Dead members that have living children or are not gone yet.
    dead: HashMap<ProcessId, Node>,
    /// Deaths that a comparison has reported: their event, should it come after all, is old news.
    /// True once gone: its event is in the ring by then, or lost.
    reported: HashMap<ProcessId, bool>,
    /// Forks since [`Watch::mark`], until the comparison.
    recent: Option<HashSet<ProcessId>>,
    totals: Totals,
}

impl Watch {
    /// Makes the model of the tree of `root` with these living members. `ghosts` are dead creators
    /// of theirs, that can be named.
    #[must_use]
    pub fn new(root: ProcessId, members: Vec<Process>, ghosts: Vec<Process>) -> Self {
        let mut watch = Self {
            root,
            alive: HashMap::new(),
            dead: HashMap::new(),
            reported: HashMap::new(),
            recent: None,
            totals: Totals::default(),
        };
        for process in ghosts {
            let mut node = Node::new(process);
            node.is_gone = true;
            watch.dead.insert(node.process.id, node);
        }
        let ids: Vec<_> = members
            .iter()
            .map(|process| (process.id, process.creator))
            .collect();
        watch.totals.seen = members.len() as u64;
        watch.alive.extend(
            members
                .into_iter()
                .map(|process| (process.id, Node::new(process))),
        );
        for (id, creator) in ids {
            watch.adopt(id, creator);
        }
        watch.dead.retain(|_, node| !node.children.is_empty());
        watch
    }

    /// Returns the root.
    #[must_use]
    pub fn root(&self) -> ProcessId {
        self.root
    }

    /// Counts so far.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns living members as the model has them.
    #[must_use]
    pub fn living(&self) -> usize {
        self.alive.len()
    }

    /// Returns the living members as the model has them, each creator before what it created.
    #[must_use]
    pub fn members(&self) -> Vec<Process> {
        let mut members: Vec<_> = self.alive.values().map(|node| &node.process).collect();
        members.sort_unstable_by_key(|process| (process.id.start_ns, process.id.pid));
        members.into_iter().cloned().collect()
    }

    /// Returns whether it is live as the model has it.
    #[must_use]
    pub fn is_live(&self, id: &ProcessId) -> bool {
        self.alive.contains_key(id)
    }

    /// Returns the living member that this is, where its start is known to a clock tick alone.
    #[must_use]
    pub fn exact(&self, id: ProcessId) -> Option<ProcessId> {
        let mut members = self.alive.keys();
        members
            .find(|member| is_same_process(**member, id))
            .copied()
    }

    /// Returns living members whose creator is dead; those of the root itself are no orphans of
    /// this tree.
    #[must_use]
    pub fn orphans(&self) -> Vec<Who> {
        let mut found: Vec<_> = self
            .alive
            .values()
            .filter(|node| self.is_orphan(&node.process))
            .collect();
        found.sort_unstable_by_key(|node| node.process.id);
        found.into_iter().map(|node| node.process.who()).collect()
    }

    fn is_orphan(&self, process: &Process) -> bool {
        process.id != self.root
            && process
                .creator
                .is_some_and(|creator| !self.alive.contains_key(&creator))
    }

    /// Enters `id` among the children of its creator.
    fn adopt(&mut self, id: ProcessId, creator: Option<ProcessId>) {
        let Some(creator) = creator else { return };
        if let Some(node) = self
            .alive
            .get_mut(&creator)
            .or_else(|| self.dead.get_mut(&creator))
        {
            node.children.insert(id);
        }
    }

    /// Returns identity and, when the model has it, name.
    fn who(&self, id: ProcessId) -> Who {
        let node = self.alive.get(&id).or_else(|| self.dead.get(&id));
        Who {
            id,
            name: node.and_then(|node| node.process.name.clone()),
        }
    }

    fn happening(&self, at_ns: Option<u64>, process: Process, what: What) -> Happening {
        let creator = process.creator.map(|creator| self.who(creator));
        Happening {
            at_ns,
            process,
            creator,
            what,
            resynced: false,
        }
    }

    /// Applies one event of the kernel; what it means, unless that is known already.
    pub fn apply(&mut self, event: &Event) -> Option<Happening> {
        let at = Some(event.time_ns);
        match event.kind {
            EVENT_FORK => self.born(at, Process::of_event(event)),
            EVENT_EXEC => {
                let node = self.alive.get_mut(&event.process)?;
                let seen = Process::of_event(event);
                node.process.name = seen.name;
                node.process.uid = seen.uid;
                let process = node.process.clone();
                Some(self.happening(at, process, What::Exec))
            }
            EVENT_RENAME => {
                let node = self.alive.get_mut(&event.process)?;
                node.process.name = Process::of_event(event).name;
                None
            }
            EVENT_SIGNAL => {
                let node = self.alive.get(&event.process)?;
                let sender = sender(event.flags, event.sender, &event.sender_name);
                let what = What::Signal {
                    signal: Signal::of_kernel(event.status),
                    sender,
                    parent_death: event.flags & PARENT_DEATH != 0,
                };
                Some(self.happening(at, node.process.clone(), what))
            }
            EVENT_EXIT => {
                // Its fork may have come before the snapshot, and its death before that as well.
                if !self.alive.contains_key(&event.process) {
                    if self.reported.remove(&event.process).is_some() {
                        return None;
                    }
                    self.enter(Process::of_event(event));
                    self.adopt_all();
                }
                let seen = Process::of_event(event);
                self.complete(&seen);
                self.died(at, event.process, seen.name, Some(Death::of_event(event)))
            }
            _ => None,
        }
    }

    /// Completes a member of which the snapshot knew the identity alone.
    fn complete(&mut self, seen: &Process) {
        let Some(node) = self.alive.get_mut(&seen.id) else {
            return;
        };
        if node.process.creator.is_some() || node.process.uid.is_some() {
            return;
        }
        node.process = seen.clone();
        self.adopt(seen.id, seen.creator);
    }

    /// Enters a member that was created, unless it is known or known to be dead.
    fn born(&mut self, at_ns: Option<u64>, process: Process) -> Option<Happening> {
        self.complete(&process);
        if self.alive.contains_key(&process.id) || self.reported.contains_key(&process.id) {
            return None;
        }
        self.recent.iter_mut().for_each(|recent| {
            recent.insert(process.id);
        });
        self.enter(process.clone());
        Some(self.happening(at_ns, process, What::Fork))
    }

    fn enter(&mut self, process: Process) {
        self.totals.seen += 1;
        let (id, creator) = (process.id, process.creator);
        let mut node = Node::new(process);
        // A ghost of the snapshot, whose last events were still in the ring.
        if let Some(ghost) = self.dead.remove(&id) {
            node.children = ghost.children;
        }
        self.alive.insert(id, node);
        self.adopt(id, creator);
    }

    /// Enters every living member among the children of its creator: for creators that came to be
    /// known after them, because events were lost or older than the snapshot.
    fn adopt_all(&mut self) {
        let links = self
            .alive
            .values()
            .map(|node| (node.process.id, node.process.creator));
        for (id, creator) in links.collect::<Vec<_>>() {
            self.adopt(id, creator);
        }
    }

    /// Takes note that a living member has died.
    fn died(
        &mut self,
        at_ns: Option<u64>,
        id: ProcessId,
        name: Option<Name>,
        death: Option<Death>,
    ) -> Option<Happening> {
        let mut node = self.alive.remove(&id)?;
        node.died_ns = at_ns;
        if name.is_some() {
            node.process.name = name;
        }
        let process = node.process.clone();
        let orphans = node.children.iter().map(|child| self.who(*child)).collect();
        self.dead.insert(id, node);
        match &death {
            Some(death) => *self.totals.exits.entry(death.cause()).or_default() += 1,
            None => self.totals.exits_unknown += 1,
        }
        let happening = self.happening(at_ns, process.clone(), What::Exit { death, orphans });
        self.disown(id, process.creator);
        Some(happening)
    }

    /// Takes `id` out of the children of its creator, and forgets that one when it was kept only
    /// for its name.
    fn disown(&mut self, id: ProcessId, creator: Option<ProcessId>) {
        let Some(creator) = creator else { return };
        if let Some(node) = self.alive.get_mut(&creator) {
            node.children.remove(&id);
        } else if let Some(node) = self.dead.get_mut(&creator) {
            node.children.remove(&id);
            if node.children.is_empty() && node.is_gone {
                self.dead.remove(&creator);
            }
        }
    }

    /// Takes note that a dead member is gone: reports it, and which of its children have another
    /// parent now.
    pub fn gone(&mut self, id: ProcessId, at_ns: u64) -> Vec<Happening> {
        self.reported.entry(id).and_modify(|gone| *gone = true);
        let Some(node) = self.dead.get_mut(&id) else {
            return Vec::new();
        };
        node.is_gone = true;
        let after_ns = node.died_ns.take().map(|died| at_ns.saturating_sub(died));
        let (process, children) = (node.process.clone(), node.children.clone());
        let mut happenings = vec![self.happening(Some(at_ns), process, What::Gone { after_ns })];
        let root_alive = self.alive.contains_key(&self.root);
        for child in &children {
            if let Some(node) = self.alive.get(child) {
                let process = node.process.clone();
                happenings.push(self.happening(
                    Some(at_ns),
                    process,
                    What::Orphaned { root_alive },
                ));
            }
        }
        if children.is_empty() {
            self.dead.remove(&id);
        }
        happenings
    }

    /// Takes a member out of the tree that is not dead: it was spared.
    pub fn forget(&mut self, id: ProcessId) {
        if let Some(node) = self.alive.remove(&id) {
            self.disown(id, node.process.creator);
        }
    }

    /// Remembers from here on what is created, for the comparison to come.
    pub fn mark(&mut self) {
        self.recent = Some(HashSet::new());
        self.reported.retain(|_, gone| !*gone);
    }

    /// Compares the model with the kernel's members, read after [`Watch::mark`], when the ring has
    /// been drained once more since the reading. `describe` returns what the records hold of a
    /// process.
    ///
    /// What was created since the mark may be missing from the reading and is left alone; what the
    /// reading lacks otherwise has died, and what the model lacks was created.
    pub fn resync(
        &mut self,
        members: &[ProcessId],
        mut describe: impl FnMut(ProcessId) -> Known,
    ) -> Vec<Happening> {
        let real: HashSet<_> = members.iter().copied().collect();
        let recent = self.recent.take().unwrap_or_default();
        let mut found = Vec::new();
        let mut missing: Vec<_> = real
            .iter()
            .filter(|id| !self.alive.contains_key(id))
            .collect();
        missing.sort_unstable();
        for id in missing {
            // It may have died since the reading, and the drain has reported it.
            if self.dead.contains_key(id) {
                continue;
            }
            let process = describe(*id)
                .process
                .unwrap_or_else(|| Process::unknown(*id));
            found.extend(self.born(None, process));
        }
        self.adopt_all();
        let mut over: Vec<_> = self
            .alive
            .keys()
            .filter(|id| !real.contains(id) && !recent.contains(id))
            .copied()
            .collect();
        // Children first: a process that is dead as well is no orphan.
        over.sort_unstable_by(|a, b| b.cmp(a));
        for id in over {
            let died = describe(id).died;
            let at = died.as_ref().map(|died| died.at_ns);
            found.extend(self.died(at, id, None, died.map(|died| died.death)));
            self.reported.insert(id, false);
        }
        for happening in &mut found {
            happening.resynced = true;
        }
        self.totals.resynced += found.len() as u64;
        found
    }
}

impl Node {
    fn new(process: Process) -> Self {
        Self {
            process,
            children: BTreeSet::new(),
            died_ns: None,
            is_gone: false,
        }
    }
}

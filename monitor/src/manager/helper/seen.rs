//! Trees as snapshots of `/proc` show them: who was once seen below a worker stays known, whoever
//! its parent is later. What loses its parent between two snapshots, unseen, is missed; but not
//! below the guardian of `lifemon run`, where each member has a mark ([`Marks`]).

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::KILL_TIMEOUT;
use super::marks::Marks;
use super::watched::have_reaped;
use crate::ProcessId;
use crate::kill::{Subject, Survivor};
use crate::loss::{Incomplete, Loss};
use crate::proc;
use crate::process::Who;
use crate::sys::pidfd;

/// Looks that have to find nobody new before a tree that is stopped counts as known.
const LOOKS: usize = 2;

/// The creator of who was orphaned unseen: a process that never lives.
const LOST: ProcessId = ProcessId::new(0, 0);

/// The trees of some workers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    workers: Vec<ProcessId>,
    /// The members below them, each with the parent that it was first seen with.
    creators: HashMap<ProcessId, ProcessId>,
    /// Where the server is below a guardian of `lifemon run`.
    marks: Option<Marks>,
    /// True if what a worker has left before it was watched may be alive.
    misses_history: bool,
}

impl Seen {
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Returns trees below a guardian of `lifemon run`, none yet.
    pub(super) fn below(marks: Marks) -> Self {
        Self {
            marks: Some(marks),
            ..Self::default()
        }
    }

    /// Returns whether a process may be a worker: below the guardian, where there is one.
    pub(super) fn may_watch(&self, worker: ProcessId) -> bool {
        let marks = self.marks.as_ref();
        marks.is_none_or(|marks| marks.may_care_for(worker.pid))
    }

    pub(super) fn watch(&mut self, workers: &[ProcessId]) {
        self.workers.extend(workers);
        if let Some(marks) = &mut self.marks {
            for worker in workers {
                marks.add(*worker);
            }
        }
        self.look();
        let members: Vec<_> = self.known().collect();
        self.misses_history |= have_reaped(&members) && self.may_have_lost(&members);
    }

    /// Returns whether one of these may have lost somebody before it was known: only below a
    /// guardian is there a way to tell.
    pub(super) fn may_have_lost(&self, members: &[ProcessId]) -> bool {
        let marks = self.marks.as_ref();
        marks.is_none_or(|marks| marks.has_stray(members))
    }

    /// Returns why something may be missed; `why` there is nothing better than snapshots.
    pub(super) fn incomplete(&self, why: &str) -> Option<Incomplete> {
        if self.is_empty() {
            return None;
        }
        let because = |why: &str| Some(Incomplete::because(Loss::NoTracker, why));
        match &self.marks {
            None => because(why),
            Some(marks) if marks.trouble.is_some() => because(marks.trouble.as_deref()?),
            Some(_) => self.misses_history.then(|| Loss::NoHistory.into()),
        }
    }

    /// Lets go of all trees.
    pub(super) fn release(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.clear();
        }
    }

    /// Takes a snapshot: adds who is below a known process, and forgets the dead that nobody needs.
    pub(super) fn look(&mut self) {
        let adopted = self.marks.as_ref().map(Marks::adopted);
        for id in adopted.into_iter().flatten() {
            if !self.workers.contains(&id) {
                self.creators.entry(id).or_insert(LOST);
            }
        }
        let mut queue: Vec<_> = self.known().collect();
        while let Some(parent) = queue.pop() {
            for child in proc::children_of(parent) {
                if !self.workers.contains(&child) && !self.creators.contains_key(&child) {
                    self.creators.insert(child, parent);
                    queue.push(child);
                }
            }
        }
        let needed: Vec<_> = self.creators.values().copied().collect();
        self.creators
            .retain(|id, _| proc::is_live(*id) || needed.contains(id));
    }

    fn known(&self) -> impl Iterator<Item = ProcessId> + '_ {
        let members = self.creators.keys();
        self.workers.iter().chain(members).copied()
    }

    /// Returns living members whose creator is dead.
    pub(super) fn orphans(&self) -> Vec<Who> {
        let orphans = self
            .creators
            .iter()
            .filter(|(id, creator)| proc::is_live(**id) && !proc::is_live(**creator));
        let mut orphans: Vec<_> = orphans
            .map(|(id, _)| Who {
                id: *id,
                name: proc::name(id.pid),
            })
            .collect();
        orphans.sort_unstable_by_key(|orphan| orphan.id);
        orphans
    }

    /// Kills all trees; returns who was killed, and who is left.
    pub(super) fn end(&mut self) -> (Vec<ProcessId>, Vec<Survivor>) {
        self.look();
        let known: Vec<_> = self.known().collect();
        kill(&known, || self.marked(None))
    }

    /// Kills one member with all below it; of a worker that is all of its tree.
    pub(super) fn kill(&mut self, id: ProcessId) -> (Vec<ProcessId>, Vec<Survivor>) {
        self.look();
        let mut doomed: Vec<_> = self.known().filter(|known| *known == id).collect();
        let mut at = 0;
        while let Some(creator) = doomed.get(at).copied() {
            let below = self.creators.iter().filter(|(_, its)| **its == creator);
            doomed.extend(below.map(|(id, _)| *id));
            at += 1;
        }
        let is_marked = |marks: &Marks| marks.is_marked(id);
        let is_worker = self.marks.as_ref().is_some_and(is_marked);
        kill(&doomed, || {
            if is_worker {
                self.marked(Some(id))
            } else {
                Vec::new()
            }
        })
    }

    /// Returns everybody alive with the mark of this worker, or with any.
    fn marked(&self, worker: Option<ProcessId>) -> Vec<ProcessId> {
        let marks = self.marks.as_ref();
        marks.map_or_else(Vec::new, |marks| marks.find(worker))
    }
}

/// Kills these, all below them, and whom `others` finds. First all of it is stopped, so that what
/// has a parent keeps it, and none is missed; `others` has to find nobody new twice, for a look can
/// miss who is created during it.
pub(super) fn kill(
    roots: &[ProcessId],
    others: impl Fn() -> Vec<ProcessId>,
) -> (Vec<ProcessId>, Vec<Survivor>) {
    let begun = Instant::now();
    let mut stopped: HashSet<ProcessId> = HashSet::new();
    let mut queue = roots.to_vec();
    let mut looks = 0;
    while looks < LOOKS && begun.elapsed() < KILL_TIMEOUT {
        queue.retain(|id| stopped.insert(*id));
        for id in &queue {
            send(*id, libc::SIGSTOP);
        }
        looks = if queue.is_empty() { looks + 1 } else { 0 };
        let below = stopped.iter().copied().flat_map(proc::children_of);
        queue = below.chain(others()).collect();
    }
    let (killed, rest): (Vec<_>, Vec<_>) =
        stopped.into_iter().partition(|id| send(*id, libc::SIGKILL));
    let left = rest.into_iter().filter(|id| proc::is_live(*id));
    let left = left.map(|id| {
        let reason = "this user may not signal it".to_owned();
        Survivor::new(Subject::new(id, proc::name(id.pid)), Some(reason))
    });
    (killed, left.collect())
}

/// Sends a signal to exactly this process; returns whether it was there and has got it.
fn send(id: ProcessId, signal: i32) -> bool {
    let Ok(pidfd) = pidfd::open(id.pid) else {
        return false;
    };
    // In this order: what is read of the pid now is of whom the descriptor refers to, or shows that
    // the pid is another process's by now.
    proc::is_live(id) && pidfd::send_signal(&pidfd, signal).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn shell(script: &str) -> (Child, ProcessId) {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let id = proc::identify(child.id()).unwrap();
        (child, id)
    }

    /// Waits until so many are known.
    fn look_for(seen: &mut Seen, members: usize) {
        let begun = std::time::Instant::now();
        while seen.creators.len() < members {
            assert!(begun.elapsed().as_secs() < 20, "{seen:?}");
            seen.look();
        }
    }

    #[test]
    fn what_has_lost_its_parent_is_an_orphan_and_dies_with_the_rest() {
        let (mut child, worker) = shell("(sleep 600 & sleep 600 & wait) & wait");
        let mut seen = Seen::default();
        seen.watch(&[worker]);
        look_for(&mut seen, 3);
        assert_eq!(seen.orphans(), []);
        let middle = seen.creators.iter().find(|(_, its)| **its == worker);
        let middle = *middle.unwrap().0;
        assert!(send(middle, libc::SIGKILL));
        child.wait().unwrap();
        seen.look();
        assert_eq!(seen.orphans().len(), 2);
        let (killed, left) = seen.end();
        assert_eq!((killed.len(), left), (2, Vec::new()));
    }

    #[test]
    fn a_part_is_killed_alone_and_a_stranger_never() {
        let (mut child, worker) = shell("sleep 600 & sleep 600 & wait");
        let (mut other, stranger) = shell("sleep 600; true");
        let mut seen = Seen::default();
        seen.watch(&[worker]);
        look_for(&mut seen, 2);
        let part = *seen.creators.keys().next().unwrap();
        assert_eq!(seen.kill(stranger).0, []);
        assert_eq!(seen.kill(part).0, [part]);
        assert!(proc::is_live(worker) && proc::is_live(stranger));
        seen.end();
        child.wait().unwrap();
        kill(&[stranger], Vec::new);
        other.wait().unwrap();
    }
}

//! Trees as snapshots of `/proc` show them: who was once seen below a worker stays known, whoever
//! its parent is later. What loses its parent between two snapshots, unseen, is missed.

use std::collections::HashMap;

use crate::ProcessId;
use crate::kill::{Subject, Survivor};
use crate::proc;
use crate::process::Who;
use crate::sys::pidfd;

/// Limit on the rounds of one kill: each finds what was created during the one before.
const ROUNDS_MAX: usize = 1_000;

/// The trees of some workers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    workers: Vec<ProcessId>,
    /// The members below them, each with the parent that it was first seen with.
    creators: HashMap<ProcessId, ProcessId>,
}

impl Seen {
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(super) fn watch(&mut self, workers: &[ProcessId]) {
        self.workers.extend(workers);
        self.look();
    }

    /// Takes a snapshot: adds who is below a known process, and forgets the dead that nobody needs.
    pub(super) fn look(&mut self) {
        let mut queue: Vec<_> = self.known().collect();
        while let Some(parent) = queue.pop() {
            for child in children(parent) {
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
        kill(&known)
    }

    /// Kills one member with all below it.
    pub(super) fn kill(&mut self, id: ProcessId) -> (Vec<ProcessId>, Vec<Survivor>) {
        self.look();
        let mut doomed: Vec<_> = self.known().filter(|known| *known == id).collect();
        let mut at = 0;
        while let Some(creator) = doomed.get(at).copied() {
            let below = self.creators.iter().filter(|(_, its)| **its == creator);
            doomed.extend(below.map(|(id, _)| *id));
            at += 1;
        }
        kill(&doomed)
    }
}

fn children(parent: ProcessId) -> impl Iterator<Item = ProcessId> {
    let pids = if proc::owns_pid(parent) {
        proc::children(parent.pid).unwrap_or_default()
    } else {
        Vec::new()
    };
    pids.into_iter().filter_map(proc::identify)
}

/// Kills these and all below them. First all of it is stopped, so that what has a parent keeps it,
/// and none is missed.
pub(super) fn kill(roots: &[ProcessId]) -> (Vec<ProcessId>, Vec<Survivor>) {
    let mut stopped: Vec<ProcessId> = Vec::new();
    let mut queue = roots.to_vec();
    for _ in 0..ROUNDS_MAX {
        queue.retain(|id| !stopped.contains(id));
        if queue.is_empty() {
            break;
        }
        for id in std::mem::take(&mut queue) {
            if !stopped.contains(&id) {
                send(id, libc::SIGSTOP);
                stopped.push(id);
            }
        }
        queue = stopped.iter().copied().flat_map(children).collect();
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
        kill(&[stranger]);
        other.wait().unwrap();
    }
}

//! Kills what is below this process, a subreaper, without privileges: by walks, each signal through
//! a descriptor that the walk has verified (I3). A walk can miss a process that is orphaned
//! meanwhile; it is a child of this process then, and the next walk meets it.
//!
//! What is known of the dead is gathered here as well: this process reaps its children, and all
//! that is left behind becomes a child of it unless its own parent reaps it first.

use std::collections::{HashMap, HashSet};
use std::io;

use super::keep::Keep;
use super::outcome::{Killed, Outcome, Subject, Survivor};
use super::survivor;
use super::walk::{self, Descendant, Reaped};
use crate::ProcessId;
use crate::proc;
use crate::process::{Name, Who, is_same_process};

/// Limit on the rounds of the walk of one tree: each round takes what the round before has
/// orphaned.
const ROUNDS_MAX: usize = 1_000;

/// Those that a pass is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope {
    /// Everything below this process.
    Everything,
    /// One process below this one, and what is below that.
    Tree(ProcessId),
}

/// The result of one pass.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Everybody who was to be signalled.
    pub(super) found: Vec<Descendant>,
    /// Those who may not be.
    pub(super) denied: HashMap<ProcessId, io::Error>,
    /// True if one of them has got this signal for the first time.
    pub(super) found_new: bool,
}

impl Pass {
    /// Returns whether there was somebody, and nobody may be signalled.
    pub(super) fn is_denied(&self) -> bool {
        !self.found.is_empty() && self.denied.len() == self.found.len()
    }
}

/// The processes below this one, as far as they were found.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// A child of this process that is left out, with what is below it.
    pub(super) except: Option<u32>,
    /// The processes that were found and are not known to be dead, with their names.
    found: HashMap<ProcessId, Option<Name>>,
    /// The signals that were sent, by process.
    struck: HashSet<(ProcessId, i32)>,
    dead: Vec<Killed>,
    /// Those who are left alone, with what is below them.
    pub(super) keep: Keep,
}

impl Below {
    /// Sends a signal to everybody in the scope.
    pub(super) fn pass(&mut self, scope: Scope, signal: i32) -> Pass {
        let mut pass = Pass::default();
        let mut members = HashSet::new();
        for descendant in walk::of_this_process(self.except) {
            let id = descendant.id;
            if self.keep.keeps(&descendant) {
                continue;
            }
            if let Scope::Tree(root) = scope {
                // Parents come before their children.
                let parent = proc::parent(id);
                let is_below = parent.is_some_and(|parent| members.contains(&parent));
                if !is_below && !is_same_process(id, root) {
                    continue;
                }
                members.insert(id.pid);
            }
            self.found.entry(id).or_insert_with(|| descendant.name());
            if let Err(error) = descendant.signal(signal) {
                pass.denied.insert(id, error);
            }
            pass.found_new |= self.struck.insert((id, signal));
            pass.found.push(descendant);
        }
        pass
    }

    /// Notes that a child was reaped.
    pub(super) fn note(&mut self, reaped: &Reaped) {
        if let Some(name) = self.found.remove(&reaped.id) {
            let process = Subject::new(reaped.id, name);
            self.dead.push(Killed::new(process, reaped.death()));
        }
    }

    /// Returns those who were found and are dead. How they ended is not known of those whom their
    /// own parents have reaped.
    pub(super) fn killed(&mut self) -> Vec<Killed> {
        let mut killed = std::mem::take(&mut self.dead);
        let found = std::mem::take(&mut self.found).into_iter();
        let over = found.filter(|(id, _)| proc::is_gone(*id));
        killed.extend(over.map(|(id, name)| Killed::new(Subject::new(id, name), None)));
        killed
    }
}

/// Kills one process below this one, and what is below it. First all of it is stopped, so that what
/// has a parent keeps it, and none is missed; then all of it is killed, through the descriptors by
/// which it was stopped.
pub(crate) fn kill_tree(root: ProcessId) -> Outcome {
    let mut below = Below::default();
    let mut stopped = HashMap::new();
    for _ in 0..ROUNDS_MAX {
        let pass = below.pass(Scope::Tree(root), libc::SIGSTOP);
        let found = pass.found.into_iter();
        stopped.extend(found.map(|descendant| (descendant.id, descendant)));
        if !pass.found_new {
            break;
        }
    }
    let mut outcome = Outcome::default();
    for (id, descendant) in stopped {
        let name = below.found.remove(&id).flatten();
        match descendant.signal(libc::SIGKILL) {
            Ok(true) => {
                let killed = Killed::new(Subject::new(id, name), None);
                outcome.killed.push(killed);
            }
            Ok(false) => outcome.already_dying.push(Who { id, name }),
            Err(error) => {
                let reason = survivor::denied(&error);
                let survivor = Survivor::new(Subject::new(id, name), Some(reason));
                outcome.survivors.push(survivor);
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::process::Death;

    /// Returns a shell with a child, which has said that it is ready.
    fn shell() -> Child {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        shell
    }

    #[test]
    fn one_tree_is_killed_and_the_one_beside_it_lives() {
        let (mut shell, mut beside) = (shell(), shell());
        let root = proc::identify(shell.id()).unwrap();
        // Whoever has its pid at another time is somebody else.
        let heir = ProcessId::new(root.pid, root.start_ns + 1_000_000_000);
        assert_eq!(kill_tree(heir), Outcome::default());
        let outcome = kill_tree(root);
        assert_eq!(outcome.killed.len(), 2, "{outcome:?}");
        assert!(
            outcome
                .killed
                .iter()
                .any(|killed| killed.process.id == root)
        );
        assert!(outcome.survivors.is_empty());
        shell.wait().unwrap();
        assert!(beside.try_wait().unwrap().is_none());
        let other = proc::identify(beside.id()).unwrap();
        assert_eq!(kill_tree(other).killed.len(), 2);
        beside.wait().unwrap();
    }

    #[test]
    fn a_death_is_that_of_the_process_and_not_of_its_pid() {
        let mut below = Below::default();
        let (first, second) = (
            ProcessId::new(77, 10_000_000),
            ProcessId::new(77, 30_000_000),
        );
        below.found.insert(first, Some("first".into()));
        below.found.insert(second, Some("second".into()));
        below.note(&Reaped {
            id: second,
            status: 9,
        });
        assert_eq!(below.dead.len(), 1);
        assert_eq!(below.dead[0].process.name.as_deref(), Some("second"));
        assert_eq!(below.dead[0].death, Some(Death::from_wait_status(9)));
        assert!(below.found.contains_key(&first));
    }
}

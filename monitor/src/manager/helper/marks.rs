//! Marks: which of all that is below the guardian of `lifemon run` belongs to which worker, exactly
//! and without privileges.
//!
//! Nothing leaves the guardian, a subreaper; but who was orphaned before anybody looked does not
//! show of which worker it is. A mark shows it: a soft limit of file locks that no other process
//! has. Linux keeps this limit for old programs and looks at it nowhere; fork copies it, exec keeps
//! it, and a process of the same user and group may set it from outside:
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/fork.c?h=v6.1.192#n1743>
//! <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/sys.c?h=v6.1.192#n1665>.
//!
//! Only a limit that was none is changed, and it is none again when the trees are let go. A process
//! that changes this limit itself loses its mark: it is ended with the run, not with its worker.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::ProcessId;
use crate::kill::is_below;
use crate::proc;
use crate::sys::{limits, pidfd};

/// Limit on the rounds of marking one tree: each takes what was created during the one before.
const ROUNDS_MAX: usize = 1_000;

/// The marks of some workers below a guardian.
#[derive(Debug)]
pub(super) struct Marks {
    guardian: u32,
    /// The process that has asked for them, and its ancestors, are nobody's orphans.
    asker: u32,
    next: u64,
    workers: HashMap<u64, ProcessId>,
    /// Why a worker has none.
    pub(super) trouble: Option<String>,
}

impl Marks {
    /// Returns no marks yet. `asker` is below `guardian`, a subreaper.
    pub(super) fn new(guardian: u32, asker: u32) -> Self {
        let mut bytes = [0; 8];
        // So few bytes come whole.
        let _ = getrandom(&mut bytes, GetRandomFlags::empty());
        Self {
            guardian,
            asker,
            // A limit that nobody has chosen before, and room to count: far from no limit.
            next: u64::from_ne_bytes(bytes) >> 2,
            workers: HashMap::new(),
            trouble: None,
        }
    }

    /// Returns whether the process that has this pid now is below the guardian, and neither lifemon
    /// nor the asker nor an ancestor of it.
    pub(super) fn may_care_for(&self, pid: u32) -> bool {
        let is_above = pid == self.asker || is_below(pid, self.asker);
        is_below(self.guardian, pid) && !is_above && !self.is_of_lifemon(pid)
    }

    /// Marks the tree of a worker.
    pub(super) fn add(&mut self, worker: ProcessId) {
        let mark = self.next;
        self.next += 1;
        // In any case: what has the mark by then is to be found, and to lose it again.
        self.workers.insert(mark, worker);
        if let Err(error) = self.set_below(worker, mark) {
            self.trouble = Some(format!("not all of {} has a mark: {error}", worker.pid));
        }
    }

    /// Marks a process and all below it, but for trees that have a mark of ours. Who is created by
    /// a marked process is born with the mark; so when all that is found has it, nobody else can
    /// come.
    fn set_below(&self, worker: ProcessId, mark: u64) -> io::Result<()> {
        let mut marked = HashSet::new();
        let mut queue = vec![worker];
        for _ in 0..ROUNDS_MAX {
            queue.retain(|id| self.of(id.pid).is_none() && marked.insert(*id));
            if queue.is_empty() {
                return Ok(());
            }
            for id in queue {
                set(id, Some(mark))?;
            }
            let below = marked.iter().copied().flat_map(proc::children_of);
            queue = below.collect();
        }
        Err(io::Error::other("it forks without end"))
    }

    /// Returns whether there is somebody whom one of these may have lost before it was known: whom
    /// the guardian has adopted, and nobody else explains.
    pub(super) fn has_stray(&self, members: &[ProcessId]) -> bool {
        let is_stray = |pid: u32| {
            let is_member = |known: &ProcessId| known.pid == pid;
            let is_live = proc::stat(pid).is_some_and(|stat| !stat.is_gone());
            let is_askers = pid == self.asker || is_below(pid, self.asker);
            let is_known = is_askers || members.iter().any(is_member) || self.of(pid).is_some();
            is_live && !is_known && !self.is_of_lifemon(pid)
        };
        let adopted = proc::children(self.guardian).unwrap_or_default();
        adopted.into_iter().any(is_stray)
    }

    /// Returns the worker whose mark the process has that has this pid now.
    fn of(&self, pid: u32) -> Option<ProcessId> {
        let [soft, _] = proc::lock_limits(pid)?;
        self.workers.get(&soft?).copied()
    }

    /// Returns the process that has this pid now, and the worker whose mark it has.
    fn member(&self, pid: u32) -> Option<(ProcessId, ProcessId)> {
        let id = proc::identify(pid)?;
        let worker = self.of(pid)?;
        // In this order: the mark was read of that process.
        proc::is_live(id).then_some((id, worker))
    }

    /// Returns the processes that the guardian has adopted and that have a mark.
    pub(super) fn adopted(&self) -> impl Iterator<Item = ProcessId> {
        let adopted = proc::children(self.guardian).unwrap_or_default();
        let members = adopted.into_iter().filter_map(|pid| self.member(pid));
        members.map(|(id, _)| id)
    }

    /// Returns everybody alive with the mark of this worker, or with any: whoever is alive for the
    /// whole look is found.
    pub(super) fn find(&self, worker: Option<ProcessId>) -> Vec<ProcessId> {
        let pids = proc::pids().unwrap_or_default().into_iter();
        let members = pids.filter_map(|pid| self.member(pid));
        let wanted = members.filter(|(id, owner)| {
            // Whoever may set a mark can give it to a process that is none of the run.
            let is_wanted = worker.is_none_or(|worker| worker == *owner);
            is_wanted && is_below(self.guardian, id.pid) && proc::owns_pid(*id)
        });
        wanted.map(|(id, _)| id).collect()
    }

    /// Returns whether this is a worker that is marked.
    pub(super) fn is_marked(&self, worker: ProcessId) -> bool {
        self.workers.values().any(|marked| *marked == worker)
    }

    /// Takes all marks back.
    pub(super) fn clear(&mut self) {
        for id in self.find(None) {
            // One that is dead by now needs nothing.
            let _ = set(id, None);
        }
        self.workers.clear();
    }

    /// Returns whether it is one of lifemon's own beside the guardian, in the process group that
    /// the guardian leads.
    fn is_of_lifemon(&self, pid: u32) -> bool {
        proc::stat(pid).is_some_and(|stat| stat.group == self.guardian)
    }
}

/// Sets the mark of exactly this process, or takes it away. One that is gone needs none.
fn set(id: ProcessId, mark: Option<u64>) -> io::Result<()> {
    let pidfd = match pidfd::open(id.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    let before = proc::lock_limits(id.pid);
    if proc::is_gone(id) {
        return Ok(());
    }
    if mark.is_some() && before != Some([None, None]) && before != Some([mark, None]) {
        return Err(io::Error::other("its limit of file locks is taken"));
    }
    limits::limit_locks(id.pid, mark)?;
    // It was alive until now, so it was that process; otherwise its pid may have had an heir.
    if pidfd::is_gone(&pidfd)? && mark.is_some() && proc::lock_limits(id.pid) == Some([mark, None])
    {
        limits::limit_locks(id.pid, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_mark_goes_to_all_that_is_created_below_and_is_taken_back() {
        let script = "sleep 600 & read line; setsid sleep 600 & echo; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let worker = proc::identify(shell.id()).unwrap();
        let mut marks = Marks::new(std::process::id(), std::process::id());
        marks.add(worker);
        assert_eq!(marks.trouble, None);
        drop(shell.stdin.take());
        let mut line = [0];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        let begun = std::time::Instant::now();
        let members = loop {
            let found = marks.find(Some(worker));
            if found.len() == 3 {
                break found;
            }
            assert!(begun.elapsed().as_secs() < 20, "{found:?}");
        };
        assert!(marks.is_marked(worker) && marks.may_care_for(worker.pid));
        assert!(!marks.may_care_for(std::process::id()));
        // Another cannot have what this one has.
        let mut other = Marks::new(std::process::id(), std::process::id());
        other.add(worker);
        assert!(other.trouble.unwrap().contains("is taken"));
        marks.clear();
        for member in members {
            assert_eq!(proc::lock_limits(member.pid), Some([None, None]));
        }
        super::super::seen::kill(&[worker], Vec::new);
        shell.wait().unwrap();
    }
}

//! What is below this process by parents, and exact signals to it, without privileges.
//!
//! A child of ours that we have not reaped keeps its pid: a signal to it is exact. Deeper down the
//! race is settled like this: the pidfd is opened, *then* `/proc` says that this pid's parent is
//! one that we have verified, *then* that parent is still there. If the pid had changed hands
//! before, the pidfd is a dead process's and the signal hits nobody. All of it stands on `/proc`
//! being that of our own pid namespace: where it is not, nothing is found.
//!
//! In the kernel:
//! - An orphan goes to the nearest subreaper within its pid namespace:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n636>
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n651>

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use crate::ProcessId;
use crate::proc::{self, Stat};
use crate::process::{Death, Name};
use crate::sys::{child, pidfd};

/// Processes of one walk. Children that are not reached become ours when their parents die, and
/// the next walk meets them.
const WALK_MAX: usize = 65_536;

/// A process below this one.
#[derive(Debug)]
pub(crate) struct Descendant {
    /// Identity, as exact as `/proc` gives it.
    pub(crate) id: ProcessId,
    pidfd: OwnedFd,
}

impl Descendant {
    /// Opens the process that has this pid now; returns also its state after that. Fails when
    /// nobody has it.
    pub(super) fn open(pid: u32) -> io::Result<(Self, Stat)> {
        let pidfd = pidfd::open(pid)?;
        let stat = proc::stat(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let id = stat.identity(pid);
        Ok((Self { id, pidfd }, stat))
    }

    /// Sends a signal to exactly this process; returns whether there was somebody to send it to.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<bool> {
        match pidfd::send_signal(&self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns its `comm`, if it is still there.
    pub(crate) fn name(&self) -> Option<Name> {
        proc::name(self.id.pid)
    }

    /// Returns whether it is gone, or that is not known. The letter in its `stat` is that of its
    /// leader, which can be a zombie long before the others end.
    pub(super) fn is_gone(&self) -> bool {
        !matches!(pidfd::is_gone(&self.pidfd), Ok(false))
    }
}

/// Returns what is alive below this process, each parent before its children; for signals. Who is
/// orphaned meanwhile may be missed, and is met by the next walk; for a list there is
/// [`super::census`]. `except` and what is below it are left out.
pub(crate) fn of_this_process(except: Option<u32>) -> Vec<Descendant> {
    let own = std::process::id();
    let mut table = Children::default();
    let children = table.of(own).into_iter();
    let mut found: Vec<Descendant> = children
        .filter(|pid| Some(*pid) != except)
        .filter_map(|pid| own_child(pid, own))
        .collect();
    let mut at = 0;
    while at < found.len() && found.len() < WALK_MAX {
        let parent = found[at].id.pid;
        for pid in table.of(parent) {
            let Some(child) = verified(pid, parent) else {
                continue;
            };
            // The parent was there after its child was verified: the number was its own.
            if !found[at].is_gone() {
                found.push(child);
            }
        }
        at += 1;
    }
    found
}

/// Opens a living child of this process. It is not reaped, so its pid is its own even where `/proc`
/// hides it; its start is 0 then.
fn own_child(pid: u32, own: u32) -> Option<Descendant> {
    let pidfd = pidfd::open(pid).ok()?;
    let stat = proc::stat(pid);
    if stat.is_some_and(|stat| stat.parent != own) {
        return None;
    }
    let id = stat.map_or_else(|| ProcessId::new(pid, 0), |stat| stat.identity(pid));
    let child = Descendant { id, pidfd };
    (!child.is_gone()).then_some(child)
}

/// Opens the living process with this pid, if `parent` is its parent.
fn verified(pid: u32, parent: u32) -> Option<Descendant> {
    let (descendant, stat) = Descendant::open(pid).ok()?;
    (stat.parent == parent && !descendant.is_gone()).then_some(descendant)
}

/// Returns whether this process has no child but this one, the dead counted: then nothing else is
/// below it. False as well where the kernel keeps no lists of children.
pub(crate) fn has_only(child: Option<u32>) -> bool {
    let listed = proc::children(std::process::id());
    listed.is_some_and(|pids| pids.into_iter().all(|pid| Some(pid) == child))
}

/// Pids of the children of a process: by the kernel's list, or by a look at all processes where
/// the kernel keeps none.
#[derive(Default)]
struct Children {
    all: Option<HashMap<u32, Vec<u32>>>,
    is_ours: Option<bool>,
}

impl Children {
    fn is_ours(&mut self) -> bool {
        *self.is_ours.get_or_insert_with(proc::is_ours)
    }

    fn of(&mut self, parent: u32) -> Vec<u32> {
        if !self.is_ours() {
            return Vec::new();
        }
        if self.all.is_none() {
            if let Some(listed) = proc::children(parent) {
                return listed;
            }
            self.all = Some(proc::children_by_parent());
        }
        let all = self.all.as_ref();
        all.and_then(|all| all.get(&parent))
            .cloned()
            .unwrap_or_default()
    }
}

/// A child of this process that has changed state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reaped {
    /// Its identity, as exact as `/proc` gives it; the start is 0 where `/proc` hides it.
    pub(crate) id: ProcessId,
    /// Its status as `wait(2)` gives it.
    pub(crate) status: i32,
}

impl Reaped {
    /// Returns the signal that has stopped it; `None` if it is dead.
    pub(crate) fn stopped_by(&self) -> Option<i32> {
        libc::WIFSTOPPED(self.status).then(|| libc::WSTOPSIG(self.status))
    }

    /// Returns whether it goes on after a stop.
    pub(crate) fn goes_on(&self) -> bool {
        libc::WIFCONTINUED(self.status)
    }

    /// Returns how it died; `None` if it is stopped, or goes on.
    pub(crate) fn death(&self) -> Option<Death> {
        let is_dead = self.stopped_by().is_none() && !self.goes_on();
        is_dead.then(|| Death::from_wait_status(self.status))
    }
}

/// Returns a child that has changed state, and reaps it if it is dead; `None` when none has.
pub(crate) fn reap() -> Option<Reaped> {
    loop {
        let pid = child::changed()?;
        // Before it is reaped: until then nobody else can have its pid.
        let id = proc::identify(pid).unwrap_or(ProcessId::new(pid, 0));
        // None if it goes on again.
        if let Some(status) = child::take_change(pid) {
            return Some(Reaped { id, status });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_and_its_child_are_found_and_signalled() {
        let script = "sleep 60 & echo; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        let found = of_this_process(None);
        let at = found.iter().find(|found| found.id.pid == shell.id());
        let at = at.expect("the shell");
        let below = found
            .iter()
            .find(|found| proc::parent(found.id) == Some(shell.id()));
        let below = below.expect("the child of the shell");
        assert!(below.signal(libc::SIGKILL).unwrap());
        assert!(at.signal(libc::SIGKILL).unwrap());
        shell.wait().unwrap();
        assert!(!at.signal(libc::SIGKILL).unwrap());
    }
}

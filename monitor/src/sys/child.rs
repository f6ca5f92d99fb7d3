//! Children: made by fork, prepared between fork and exec, waited for, adopted.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::io::retry_on_intr;
use rustix::process::{
    self, Pid, Signal, WaitId, WaitIdOptions, WaitOptions, set_child_subreaper,
    set_parent_process_death_signal, setpgid,
};

use super::check;
use super::descriptor::keep_on_exec;
use super::signals::{Before, Mask};
use super::terminal::set_foreground;
use crate::proc::own_threads;

/// Copies this process, which must have one thread. Returns the child's pid; `None` in the child,
/// which ends by [`exit`].
///
/// # Errors
/// When this process has several threads, and whatever the call fails with.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    // Changes nothing, and is refused in a process with several threads. A sandbox that forbids
    // all of `unshare` may do so with the same error.
    let is_refused = unshare(CloneFlags::CLONE_THREAD) == Err(nix::errno::Errno::EINVAL);
    if is_refused && own_threads() != Some(1) {
        return Err(io::Error::other("a process with several threads forks"));
    }
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child.as_raw().cast_unsigned())),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Ends this process at once, without destructors: those of a copy are the original's to run.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: runs nothing of this program any more.
    unsafe { libc::_exit(code) }
}

/// Sets the name that `ps` shows for this process.
pub(crate) fn set_name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// Makes this process the parent of those below it whose parents die.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(process::getpid()))?)
}

/// Makes this process the leader of a process group of its own.
pub(crate) fn lead_group() -> io::Result<()> {
    Ok(setpgid(None, None)?)
}

/// The steps of a child between fork and exec.
#[derive(Debug, Clone, Default)]
pub(crate) struct BeforeExec {
    /// Dies with this parent, whose only thread forks it.
    pub(crate) dies_with: Option<u32>,
    /// Joins this process group; 0 makes one of its own.
    pub(crate) group: Option<i32>,
    /// Takes the foreground of the terminal that is standard input.
    pub(crate) takes_terminal: bool,
    /// Keeps these descriptors open.
    pub(crate) keeps: Vec<RawFd>,
    /// Gets these signals back; all are blocked before the rest is done.
    pub(crate) signals: Option<Before>,
}

impl BeforeExec {
    /// Lets the children that `command` starts do this.
    pub(crate) fn set(self, command: &mut Command) {
        // SAFETY: `run` makes system calls only; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || self.run()) };
    }

    fn run(&self) -> io::Result<()> {
        if self.signals.is_some() {
            // From the background, only with SIGTTOU blocked may the terminal be taken.
            Mask::ALL.set()?;
        }
        if let Some(parent) = self.dies_with {
            die_with(parent)?;
        }
        if let Some(group) = self.group {
            setpgid(None, Pid::from_raw(group))?;
        }
        if self.takes_terminal {
            // A terminal that was lost meanwhile is no reason not to run.
            let own = process::getpid().as_raw_nonzero().get();
            let _ = set_foreground(rustix::stdio::stdin(), own);
        }
        for fd in &self.keeps {
            keep_on_exec(*fd, true)?;
        }
        match self.signals {
            Some(before) => before.restore(),
            None => Ok(()),
        }
    }
}

/// Makes this process get SIGKILL when its parent is dead, which it may be already.
fn die_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if parent_id() == parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// Returns whether this process has any child, dead or alive. The kernel's own word, so proof.
pub(crate) fn has_children() -> bool {
    let kinds = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let all = WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    retry_on_intr(|| process::waitid(WaitId::All, kinds | all)).is_ok()
}

/// Returns the pid of a child that has changed state, which stays to be taken; `None` when none
/// has.
pub(crate) fn changed() -> Option<u32> {
    let kinds = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: integers and pointers that are not followed; all zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives until the call returns. It does not sleep, so no signal interrupts it.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, kinds) }.into()).ok()?;
    // SAFETY: the call has filled in the fields of a child, or left all of it zero.
    let pid = unsafe { info.si_pid() };
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// Takes the change of a child, and reaps it if it is dead; returns its status as `wait(2)` gives
/// it. `None` when it has not changed.
pub(crate) fn take_change(pid: u32) -> Option<i32> {
    let kinds = WaitOptions::NOHANG | WaitOptions::UNTRACED;
    let all = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let pid = Pid::from_raw(pid.cast_signed());
    let (_, status) = retry_on_intr(|| process::waitpid(pid, kinds | all)).ok()??;
    Some(status.as_raw())
}

/// Waits until a child is dead, and reaps it.
pub(crate) fn wait_for_end(pid: u32) {
    let _ = process::waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(fork().is_err());
        drop(stop);
        let _ = other.join().unwrap();
    }

    #[test]
    fn what_is_done_between_fork_and_exec_is_seen_in_the_child() {
        let mut command = Command::new("sh");
        command.args(["-c", "ps -o pgid= -p $$ | tr -d ' '; echo $$"]);
        let prepared = BeforeExec {
            dies_with: Some(std::process::id()),
            group: Some(0),
            ..BeforeExec::default()
        };
        prepared.set(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), lines.next().unwrap());
    }
}

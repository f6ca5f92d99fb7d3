//! Children: made by fork, prepared between fork and exec, waited for, adopted.

use std::ffi::{CStr, CString};
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
use super::inherited::closed_streams;
use super::signals::{Before, Mask};
use super::terminal::set_foreground;
use crate::proc::own_threads;

/// Copies this process, which must have one thread. Returns the child's pid; `None` in the child,
/// which ends by [`exit`].
///
/// # Errors
/// When this process has several threads, and whatever the call fails with.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    require_one_thread()?;
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child.as_raw().cast_unsigned())),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Fails where this process has several threads: its copy would be no whole one.
fn require_one_thread() -> io::Result<()> {
    // Changes nothing, and is refused in a process with several threads. A sandbox that forbids
    // all of `unshare` may do so with the same error.
    let is_refused = unshare(CloneFlags::CLONE_THREAD) == Err(nix::errno::Errno::EINVAL);
    if is_refused && own_threads() != Some(1) {
        return Err(io::Error::other("a process with several threads forks"));
    }
    Ok(())
}

/// Copies this process as [`fork`] does, so that the end of each of the two continues the other
/// where that is stopped: who stops one and kills the other has not won. The child's end is told by
/// SIGCONT instead of SIGCHLD, and the child asks for SIGCONT at the end of its parent:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/signal.c?h=v6.12.117#n923>
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.117#n718>.
///
/// # Errors
/// As [`fork`].
pub(crate) fn fork_companion() -> io::Result<Option<u32>> {
    require_one_thread()?;
    let (flags, none) = (libc::c_ulong::from(libc::SIGCONT.cast_unsigned()), 0_usize);
    // SAFETY: as in `fork`: a whole copy on a stack of its own, for all else is zero. What libc
    // does beside the call is for processes with several threads.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match check(result)? {
        0 => {
            let _ = set_parent_process_death_signal(Some(Signal::CONT));
            Ok(None)
        }
        pid => Ok(u32::try_from(pid).ok()),
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

/// Makes this process the leader of a session, and so of a process group, of its own.
pub(crate) fn lead_session() -> io::Result<()> {
    Ok(process::setsid().map(drop)?)
}

/// Leaves whatever directory this process is in, which is not kept from being unmounted then.
pub(crate) fn leave_directory() {
    let _ = rustix::process::chdir("/");
}

/// Makes this process get a signal, by number, when the thread that has started it ends.
pub(crate) fn hear_of_parents_end(signal: i32) -> io::Result<()> {
    let signal = libc::c_ulong::from(signal.cast_unsigned());
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }.into()).map(drop)
}

/// Becomes the program that the words name, found as the shell finds it; returns why not.
pub(crate) fn become_program(words: &[CString]) -> io::Error {
    let Some(program) = words.first() else {
        return io::Error::from_raw_os_error(libc::ENOENT);
    };
    let Err(errno) = nix::unistd::execvp(program, words);
    errno.into()
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
    /// Closes the standard streams that were closed when this process began.
    pub(crate) closes_streams: bool,
}

impl BeforeExec {
    /// Lets the children that `command` starts do this.
    pub(crate) fn set(self, command: &mut Command) {
        // SAFETY: `run` makes system calls only; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || self.run()) };
    }

    /// Does it in this process.
    pub(crate) fn run(&self) -> io::Result<()> {
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
        if self.closes_streams {
            for stream in closed_streams() {
                // SAFETY: the call takes no pointer, and whoever uses the stream from here on is to
                // find it closed.
                unsafe { libc::close(stream) };
            }
        }
        match self.signals {
            Some(before) => before.restore(),
            None => Ok(()),
        }
    }
}

/// Makes this process get SIGKILL when its parent is dead, which it may be already.
pub(crate) fn die_with(parent: u32) -> io::Result<()> {
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

/// Returns the pid of a child that has died, stopped or gone on, which stays to be taken; `None`
/// when none has.
pub(crate) fn changed() -> Option<u32> {
    let kinds = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let kinds = kinds | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
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
    let kinds = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
    let all = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let pid = Pid::from_raw(pid.cast_signed());
    let (_, status) = retry_on_intr(|| process::waitpid(pid, kinds | all)).ok()??;
    Some(status.as_raw())
}

/// Waits until a child is dead, and reaps it.
pub(crate) fn wait_for_end(pid: u32) {
    let all = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let pid = Pid::from_raw(pid.cast_signed());
    let _ = retry_on_intr(|| process::waitpid(pid, all));
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

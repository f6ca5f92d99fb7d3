//! Making, holding and ending processes: the only `fork` of the actors, and the deadline that
//! every process here sets itself, so that nothing lives on when a test is killed.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid, alarm, dup2_stderr, dup2_stdin, dup2_stdout, fork};

use crate::talk::fail;

/// Then SIGALRM ends the process. An exec keeps the alarm, a fork does not.
const LIFETIME_S: u32 = 120;
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(1);

pub(crate) fn set_deadline() {
    alarm::set(LIFETIME_S);
}

/// Forks; the child runs the body and exits with its value, without destructors or handlers.
pub(crate) fn try_spawn(body: impl FnOnce() -> i32) -> nix::Result<Pid> {
    if let Some(child) = fork_here()? {
        return Ok(child);
    }
    set_deadline();
    exit_now(body())
}

/// Forks and returns in both: without a child there, and without the deadline of the child set.
pub(crate) fn fork_here() -> nix::Result<Option<Pid>> {
    // SAFETY: a behaviour that forks has one thread, so the child is a whole copy of it; or its
    // children do nothing but system calls.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Does the same where a failure to fork is the end of the behaviour. Orphans that init has not
/// reaped yet count against the limit of the sandbox, so there is some patience when it is reached.
pub(crate) fn spawn(body: impl Fn() -> i32) -> Pid {
    let start = Instant::now();
    loop {
        match try_spawn(&body) {
            Ok(child) => return child,
            Err(Errno::EAGAIN) if start.elapsed() < PATIENCE => thread::sleep(STEP),
            Err(errno) => fail(&format!("fork: {errno}")),
        }
    }
}

/// Sleeps until a signal ends it, and lets go of the pipes to the test so that it sees their end.
pub(crate) fn hold() -> ! {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        _ = dup2_stdin(&null);
        _ = dup2_stdout(&null);
        _ = dup2_stderr(&null);
    }
    // Not for ever even where SIGALRM is ignored, as it is by the init of a pid namespace.
    thread::sleep(Duration::from_secs(LIFETIME_S.into()));
    exit_now(0)
}

/// Calls `_exit`: the whole thread group, nothing flushed, nothing run.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; there is no state to keep whole.
    unsafe { libc::_exit(code) }
}

/// Returns the pid in the pid namespace of the mounted `/proc`, whatever namespace this process is
/// in.
pub(crate) fn pid_outside() -> i32 {
    let link = std::fs::read_link("/proc/self").ok();
    let pid = link.and_then(|path| path.to_str()?.parse().ok());
    pid.unwrap_or_else(|| fail("/proc/self names no pid"))
}

/// Polls every millisecond; the process's own deadline is the bound.
pub(crate) fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(STEP);
    }
}

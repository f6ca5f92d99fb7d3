//! Processes whose real parent is not their creator, although the creator did not simply die:
//! `clone-parent` (never was) and `subreaper` (the actor takes over what its child leaves).

use lifemon_tests::proc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use serde_json::json;

use crate::pipe::Pipe;
use crate::process::{exit_now, hold, set_deadline, spawn, until};
use crate::talk::{begin, commands, fail, next_step, reap, report, say};

/// Roles `creator` and `worker`: made by the creator, a child of the actor. Both stay.
pub(crate) fn clone_parent() -> i32 {
    begin();
    let up = Pipe::new();
    let creator = spawn(|| {
        up.send(clone_sibling());
        hold()
    });
    report(creator, "creator");
    report(up.receive_pid(), "worker");
    commands()
}

/// Makes a child of this one's parent, which stays; returns its pid.
pub(crate) fn clone_sibling() -> i32 {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork of a process with one thread; all pointers absent.
    match unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) } {
        0 => {
            set_deadline();
            hold()
        }
        -1 => fail("clone with CLONE_PARENT failed"),
        pid => pid as i32,
    }
}

/// Roles `middle` and its `worker`. On the second line the middle is killed, and the worker
/// becomes a child of the actor.
pub(crate) fn subreaper() -> i32 {
    if set_child_subreaper(true).is_err() {
        fail("no subreapers here");
    }
    begin();
    let up = Pipe::new();
    let middle = spawn(|| {
        up.send(spawn(|| hold()).as_raw());
        hold()
    });
    let worker = up.receive_pid();
    report(middle, "middle");
    report(worker, "worker");
    next_step();
    kill_and_reap(middle);
    let actor = getpid().as_raw();
    until(|| proc::ppid(worker.as_raw()) == Some(actor));
    say(&json!({"reparented": worker.as_raw(), "ppid": actor}));
    commands()
}

fn kill_and_reap(child: Pid) {
    // Not reaped yet, so the number is still the child's.
    if kill(child, Signal::SIGKILL).is_err() {
        exit_now(1);
    }
    reap(child);
}

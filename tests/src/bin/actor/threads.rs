//! Threads that come, go, exec and outlive their leader: what a monitor that takes thread exits
//! for process exits gets wrong. None of these forks.

use std::ffi::CString;
use std::thread;

use lifemon_tests::proc;
use nix::unistd::{execv, getpid, gettid};
use serde_json::json;

use crate::args::Args;
use crate::process::{exit_now, until};
use crate::talk::{await_line, begin, commands, done, fail, say};

const THREADS_MAX: u32 = 1000;
/// What the leader thread alone exits with. Never the status of the process, except before Linux
/// 5.17 when the last thread exits alone too.
const LEADER_CODE: libc::c_long = 77;

/// Runs `threads [N]`: N threads (200) come and go.
pub(crate) fn come_and_go(args: &mut Args) -> i32 {
    let count = args.count_or("threads", 200, THREADS_MAX);
    begin();
    let threads: Vec<_> = (0..count).map(|_| thread::spawn(|| {})).collect();
    let joined = threads
        .into_iter()
        .filter_map(|thread| thread.join().ok())
        .count();
    say(&json!({"threads": joined}));
    commands()
}

/// Runs `exec-from-thread`: a second thread execs `actor pause`; the pid stays, its thread id ends.
pub(crate) fn exec_from_thread() -> i32 {
    begin();
    let program = std::env::current_exe()
        .ok()
        .and_then(|path| path.to_str().map(CString::new));
    let Some(Ok(program)) = program else {
        fail("the path of the actor is unknown")
    };
    let thread = thread::spawn(move || {
        say(&json!({"thread": gettid().as_raw()}));
        let errno = execv(&program, &[c"actor", c"pause"]);
        fail(&format!("exec: {errno:?}"))
    });
    // Returns only by a panic there; the exec ends this thread where it waits.
    _ = thread.join();
    fail("the thread ended without exec")
}

/// Runs `leader-exits-first CODE [thread]`: the leader thread exits alone. On the second line the
/// other thread ends the process with CODE, or, with `thread`, exits alone too.
pub(crate) fn leader_exits_first(args: &mut Args) -> i32 {
    let code = args.exit_code();
    let alone = args.optional().is_some_and(|word| word == "thread");
    begin();
    thread::spawn(move || {
        let leader_is_dead = || proc::stat(getpid().as_raw()).is_some_and(|s| s.state == 'Z');
        until(leader_is_dead);
        say(&json!({"leader_exited": true, "thread": gettid().as_raw()}));
        done();
        await_line();
        if alone {
            exit_this_thread(code.into())
        } else {
            exit_now(code)
        }
    });
    exit_this_thread(LEADER_CODE)
}

fn exit_this_thread(code: libc::c_long) -> ! {
    // SAFETY: ends this thread without unwinding. Its stack stays mapped: the leader's belongs to
    // the process, the other's is freed by nobody, since no thread joins it.
    unsafe { libc::syscall(libc::SYS_exit, code) };
    unreachable!("exit does not return")
}

/// Runs `exit-group-from-thread CODE`: a second thread ends the process while the leader waits for
/// it.
pub(crate) fn exit_group_from_thread(args: &mut Args) -> i32 {
    let code = args.exit_code();
    begin();
    let thread = thread::spawn(move || exit_now(code));
    _ = thread.join();
    fail("the thread ended without the process")
}

//! `hears`: says `{"heard":N}` for every signal that reaches it, and lives on. It blocks all of
//! them with raw system calls: libc would keep two real-time signals to itself.

use nix::unistd::getpid;
use serde_json::json;

use crate::talk::{fail, say};

const SET_BYTES: usize = 8;

pub(crate) fn hears() -> i32 {
    let all = u64::MAX;
    let none = std::ptr::null::<u64>();
    // SAFETY: the set lives until the call returns and has the size that is given.
    let blocked = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            none,
            SET_BYTES,
        )
    };
    if blocked != 0 {
        fail("signals cannot be blocked");
    }
    say(&json!({"ready": true, "pid": getpid().as_raw()}));
    loop {
        // SAFETY: as above; neither a siginfo nor a time-out is asked for.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const all,
                none,
                none,
                SET_BYTES,
            )
        };
        if signal > 0 {
            say(&json!({"heard": signal}));
        }
    }
}

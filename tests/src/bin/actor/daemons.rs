//! `daemons CODE`: leaves ten processes behind, each in another way, reports them in the role
//! `daemon`, and exits with CODE. For `lifemon run`: it waits for nobody and needs no stdin.

use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, getpid, getppid, setpgid, setsid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{hold, spawn, until};
use crate::reparent::clone_sibling;
use crate::talk::report;

const GENERATIONS: u32 = 5;

pub(crate) fn daemons(args: &mut Args) -> i32 {
    let code = args.exit_code();
    let up = Pipe::new();
    let stay = || -> i32 {
        up.send(getpid().as_raw());
        hold()
    };
    let ways: [&dyn Fn() -> i32; 8] = [
        &stay,
        &|| {
            _ = setsid();
            stay()
        },
        &|| {
            _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            stay()
        },
        &|| {
            ignore(&[Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
            stay()
        },
        &|| {
            _ = set_name(c"kworker/0:1");
            stay()
        },
        &|| twice(&stay),
        &|| {
            _ = setsid();
            twice(&stay)
        },
        &|| generation(GENERATIONS, &stay),
    ];
    for way in ways {
        spawn(way);
    }
    spawn(|| own_subreaper(&stay));
    // A child of this one's parent.
    up.send(clone_sibling());
    // The subreaper of its own stays as well.
    for _ in 0..11 {
        report(up.receive_pid(), "daemon");
    }
    code
}

fn ignore(signals: &[Signal]) {
    for ignored in signals {
        // SAFETY: no handler is installed.
        _ = unsafe { signal(*ignored, SigHandler::SigIgn) };
    }
}

/// Forks twice; the second stays, once the first is dead.
fn twice(stay: &impl Fn() -> i32) -> i32 {
    let me = getpid();
    spawn(|| {
        until(|| getppid() != me);
        stay()
    });
    0
}

/// Makes the next generation: each begins once its creator is dead, and the last one stays.
fn generation(left: u32, stay: &impl Fn() -> i32) -> i32 {
    if left == 0 {
        return stay();
    }
    let me = getpid();
    spawn(|| {
        until(|| getppid() != me);
        generation(left - 1, stay)
    });
    0
}

/// Keeps the orphan of its child to itself.
fn own_subreaper(stay: &impl Fn() -> i32) -> i32 {
    _ = set_child_subreaper(true);
    spawn(|| twice(stay));
    stay()
}

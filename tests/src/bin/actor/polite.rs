//! `polite GOOD BAD`: what processes do when they are asked to end. GOOD of them exit with 3 on
//! SIGTERM, BAD ignore it; the actor outlives them, reports how each ended, and exits with 5.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{exit_now, hold, spawn};
use crate::talk::{begin, done, fail, reap, report};

const PROCESSES_MAX: u32 = 100;
const GOOD_CODE: i32 = 3;
const ROOT_CODE: i32 = 5;

/// Roles `good` and `bad`.
pub(crate) fn polite(args: &mut Args) -> i32 {
    let good = args.count("good processes", PROCESSES_MAX);
    let bad = args.count("bad processes", PROCESSES_MAX);
    begin();
    let up = Pipe::new();
    let make = |handler: SigHandler| {
        let child = spawn(|| {
            on_sigterm(handler);
            up.send(0);
            hold()
        });
        up.receive();
        child
    };
    let good: Vec<_> = (0..good)
        .map(|_| make(SigHandler::Handler(leave)))
        .collect();
    let bad: Vec<_> = (0..bad).map(|_| make(SigHandler::SigIgn)).collect();
    for (children, role) in [(&good, "good"), (&bad, "bad")] {
        for child in children {
            report(*child, role);
        }
    }
    on_sigterm(SigHandler::Handler(stay));
    done();
    good.into_iter().chain(bad).for_each(reap);
    ROOT_CODE
}

extern "C" fn leave(_: libc::c_int) {
    exit_now(GOOD_CODE)
}

extern "C" fn stay(_: libc::c_int) {}

fn on_sigterm(handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handlers exit or do nothing.
    if unsafe { sigaction(Signal::SIGTERM, &action) }.is_err() {
        fail("no handler for SIGTERM");
    }
}

//! `pulse N FILE`: N processes that count up in shared memory every 20 ms, deaf to SIGTERM but for
//! counting it. Who counts still gets back from its system calls.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::getpid;

use crate::args::Args;
use crate::process::{spawn, until};
use crate::shared::words;
use crate::talk::{begin, commands, fail};

const PROCESSES_MAX: u32 = 500;
const BEAT: Duration = Duration::from_millis(20);

static TERMINATIONS: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Makes processes that count, each in three words: its pid, its beats, how often it was asked to
/// end.
pub(crate) fn pulse(args: &mut Args) -> i32 {
    let count = args.count("processes", PROCESSES_MAX) as usize;
    let shared = words(&args.path("file"), 3 * count);
    begin();
    for place in shared.chunks(3) {
        spawn(|| {
            count_terminations(&place[2]);
            place[0].store(getpid().as_raw().unsigned_abs().into(), Ordering::SeqCst);
            loop {
                place[1].fetch_add(1, Ordering::SeqCst);
                thread::sleep(BEAT);
            }
        });
    }
    until(|| {
        shared
            .chunks(3)
            .all(|place| place[1].load(Ordering::SeqCst) > 1)
    });
    commands()
}

extern "C" fn on_termination(_: libc::c_int) {
    let counter = TERMINATIONS.load(Ordering::SeqCst);
    // SAFETY: set before the handler is, to a word that is mapped for ever.
    unsafe { &*counter }.fetch_add(1, Ordering::SeqCst);
}

fn count_terminations(counter: &'static AtomicU64) {
    TERMINATIONS.store(std::ptr::from_ref(counter).cast_mut(), Ordering::SeqCst);
    let handler = SigHandler::Handler(on_termination);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler adds to a word of shared memory and does nothing else.
    if unsafe { sigaction(Signal::SIGTERM, &action) }.is_err() {
        fail("no handler for SIGTERM");
    }
}

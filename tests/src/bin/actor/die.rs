//! Deaths by signals that nobody else sends: `core-dump DIR`, `fault`, `signal-itself N` and
//! `die-by N`. The first aborts in DIR, so a plain `core` pattern puts the file where the test
//! removes it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::{chdir, getpid};

use crate::args::{Args, usage};
use crate::process::{exit_now, spawn};
use crate::talk::{begin, commands, reap, report};

/// Makes role `worker`, which dies by SIGABRT and dumps core. It exits with 3 where it could not
/// prepare.
pub(crate) fn core_dump(args: &mut Args) -> i32 {
    let directory = args.path("directory");
    begin();
    let worker = spawn(|| {
        let unlimited = getrlimit(Resource::RLIMIT_CORE)
            .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_CORE, hard, hard));
        if unlimited.is_err() || chdir(&directory).is_err() {
            exit_now(3);
        }
        std::process::abort()
    });
    report(worker, "worker");
    reap(worker);
    commands()
}

/// Makes role `worker`, which reads where no memory is. The kernel's signal, SIGSEGV; no core.
pub(crate) fn fault() -> i32 {
    begin();
    let worker = spawn(|| {
        without_core();
        by_default(Signal::SIGSEGV);
        // SAFETY: the first page is never mapped, so the read ends the process, as it is meant to.
        i32::from(unsafe { std::hint::black_box(8 as *const u8).read_volatile() })
    });
    report(worker, "worker");
    reap(worker);
    commands()
}

/// Makes role `worker`, which sends itself signal N, by `kill(2)`; no core.
pub(crate) fn signal_itself(args: &mut Args) -> i32 {
    let number = args.count("signal", 31).cast_signed();
    let Ok(signal) = Signal::try_from(number) else {
        usage(&format!("no signal {number}"))
    };
    begin();
    let worker = spawn(|| {
        without_core();
        by_default(signal);
        _ = kill(getpid(), signal);
        4
    });
    report(worker, "worker");
    reap(worker);
    commands()
}

/// Ends the actor itself by signal N, whatever it inherited; no core.
pub(crate) fn die_by(args: &mut Args) -> i32 {
    let number = args.count("signal", 64).cast_signed();
    without_core();
    // SAFETY: no handler of ours is installed, and no memory is passed.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
    4
}

fn without_core() {
    if setrlimit(Resource::RLIMIT_CORE, 0, 0).is_err() {
        exit_now(3);
    }
}

/// Takes away the handler that the Rust runtime has for faults.
fn by_default(signal: Signal) {
    // SAFETY: no handler of ours is installed or removed by it.
    let changed = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    // SIGKILL and SIGSTOP have no other disposition.
    if changed.is_err() && !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
        exit_now(3);
    }
}

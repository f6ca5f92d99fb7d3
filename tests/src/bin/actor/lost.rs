//! What a full lineage map loses, and what fills it, who sends a signal that nobody sends, and
//! signals without end:
//! `lost-creator N`, `flood ROUNDS LENGTH`, `timer N` and `storm N`.

use std::fs;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use crate::args::Args;
use crate::pipe::Pipe;
use crate::process::{hold, spawn, until};
use crate::talk::{begin, commands, fail, next_step, reap, report};

/// Makes N that stay, then role `middle`. On the next line all N end; then the middle forks role
/// `leaf`, which stays, and on one more line the middle exits.
pub(crate) fn lost_creator(args: &mut Args) -> i32 {
    let fillers = args.count("fillers", 5_000);
    begin();
    let fillers: Vec<_> = (0..fillers).map(|_| spawn(|| hold())).collect();
    let (up, down) = (Pipe::new(), Pipe::new());
    let middle = spawn(|| {
        down.receive();
        up.send(spawn(|| hold()).as_raw());
        down.receive()
    });
    report(middle, "middle");
    next_step();
    for filler in fillers {
        _ = kill(filler, Signal::SIGKILL);
        reap(filler);
    }
    down.send(0);
    report(up.receive_pid(), "leaf");
    next_step();
    down.send(0);
    reap(middle);
    commands()
}

/// Makes role `worker`, which dies of signal N, which a timer of its own sends a moment later.
pub(crate) fn timer(args: &mut Args) -> i32 {
    let number = args.count("signal", 31).cast_signed();
    begin();
    let worker = spawn(|| {
        arm(number);
        hold()
    });
    report(worker, "worker");
    reap(worker);
    commands()
}

/// Arms a timer that sends this signal to this process in 20 ms.
fn arm(number: i32) {
    // SAFETY: all zero is a valid event and a valid time.
    let (mut event, mut time): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = number;
    time.it_value.tv_nsec = 20_000_000;
    let mut timer = std::ptr::null_mut();
    // SAFETY: all three structures live until the calls return.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        libc::timer_settime(timer, 0, &raw const time, std::ptr::null_mut());
    }
}

/// Ten of role `worker`, which stay; then sends itself N signals that it handles.
pub(crate) fn storm(args: &mut Args) -> i32 {
    let signals = args.count("signals", 1_000_000);
    begin();
    for _ in 0..10 {
        report(spawn(|| hold()), "worker");
    }
    let handler = SigHandler::Handler(handle);
    // SAFETY: the handler does nothing.
    if unsafe { signal(Signal::SIGUSR1, handler) }.is_err() {
        fail("no handler for SIGUSR1");
    }
    for _ in 0..signals {
        _ = kill(getpid(), Signal::SIGUSR1);
    }
    commands()
}

extern "C" fn handle(_: libc::c_int) {}

/// Role `leaf`, which stays at the end. ROUNDS times, whoever is the leaf makes a line of LENGTH
/// processes below itself with a new leaf at its end; then the line dies from its end upwards, and
/// the old leaf last. So each death finds its creator alive, and all of them stay as ghosts.
pub(crate) fn flood(args: &mut Args) -> i32 {
    let (rounds, length) = (args.count("rounds", 1_000), args.count("length", 1_000));
    begin();
    let up = Pipe::new();
    let first = spawn(|| leaf(rounds, length, &up, None));
    let last = up.receive_pid();
    reap(first);
    report(last, "leaf");
    commands()
}

fn leaf(rounds: u32, length: u32, up: &Pipe, above: Option<Pid>) -> i32 {
    if let Some(above) = above {
        until(|| is_over(above));
    }
    if rounds == 0 {
        up.send(getpid().as_raw());
        hold();
    }
    let top = getpid();
    line(length, &|| leaf(rounds - 1, length, up, Some(top)))
}

/// Returns whether a process is dead, reaped or not.
fn is_over(process: Pid) -> bool {
    let line = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = line
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

fn line(left: u32, end: &dyn Fn() -> i32) -> i32 {
    if left == 0 {
        spawn(end);
    } else {
        _ = waitpid(spawn(|| line(left - 1, end)), None);
    }
    0
}

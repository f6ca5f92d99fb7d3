//! Trees that fork while they are being killed. Each is bounded: by a count in shared memory, by
//! 60 seconds for each process, and by the sandbox, which lets no more live than it may hold.
//! `BOMB FILE [adopt]`: the count is in FILE; with `adopt` the actor takes over what its
//! descendants leave, so that a monitor that comes later finds them by their parents.

use std::thread;
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{alarm, getpid, setsid};

use crate::args::Args;
use crate::fork::vfork_true;
use crate::process::{exit_now, fork_here, hold, until};
use crate::shared::Fuse;
use crate::talk::{begin, commands, fail};

const MADE_MAX: u64 = 200_000;
const DEADLINE_S: u32 = 60;
/// Processes made before a bomb counts as burning.
const BURNING: u64 = 50;
const FULL_PAUSE: Duration = Duration::from_millis(2);

const TREE_BRANCHES: u32 = 20;
const TREE_LEAVES: u32 = 24;
const SUPERVISORS: usize = 4;
const WORKERS: usize = 6;
const LAUNCHERS: usize = 6;
const THREADS: usize = 8;

/// Reads what the arguments of every bomb say.
fn prepare(args: &mut Args) -> Fuse {
    let [fuse, _] = prepare_with_count(args);
    fuse
}

/// Does the same, with a count besides.
fn prepare_with_count(args: &mut Args) -> [Fuse; 2] {
    let counts = Fuse::all_from_args(args, MADE_MAX);
    if args.optional().is_some_and(|word| word == "adopt") {
        let adopts = set_child_subreaper(true);
        adopts.unwrap_or_else(|errno| fail(&format!("no subreapers here: {errno}")));
    }
    set(Signal::SIGCHLD, SigHandler::SigIgn);
    begin();
    counts
}

fn set(of: Signal, handler: SigHandler) {
    // SAFETY: only dispositions without code of ours are set here.
    unsafe { signal(of, handler) }.unwrap_or_else(|errno| fail(&format!("{of}: {errno}")));
}

/// Makes a process if the fuse allows it; where the sandbox is full, waits until it is not.
/// Whether this is the child; `None` when the bomb has burnt out.
fn split(fuse: &Fuse) -> Option<bool> {
    while fuse.burn() {
        match fork_here() {
            Ok(Some(_)) => return Some(false),
            Ok(None) => {
                alarm::set(DEADLINE_S);
                return Some(true);
            }
            Err(_) => thread::sleep(FULL_PAUSE),
        }
    }
    None
}

/// Does the same with a body for the child.
fn part(fuse: &Fuse, body: impl FnOnce() -> i32) {
    if split(fuse) == Some(true) {
        exit_now(body());
    }
}

/// Returns something that differs from process to process, below `below`.
fn die_cast(below: u32) -> u32 {
    getpid()
        .as_raw()
        .cast_unsigned()
        .wrapping_mul(2_654_435_761)
        % below
}

fn burning(fuse: &Fuse) -> i32 {
    until(|| fuse.burnt() > BURNING);
    commands()
}

/// Forks, the parent exits, the child forks: for ever. One lives at a time.
pub(crate) fn comet(args: &mut Args) -> i32 {
    let fuse = prepare(args);
    part(&fuse, || fly(&fuse, |_| Duration::ZERO));
    burning(&fuse)
}

/// Does the same with a pause of 1 to 5 ms in each process.
pub(crate) fn slow_comet(args: &mut Args) -> i32 {
    let fuse = prepare(args);
    let pause = |cast: u32| Duration::from_micros(1_000 + u64::from(cast));
    part(&fuse, || fly(&fuse, pause));
    burning(&fuse)
}

fn fly(fuse: &Fuse, pause: impl Fn(u32) -> Duration) -> i32 {
    while split(fuse) == Some(true) {
        let time = pause(die_cast(4_000));
        if !time.is_zero() {
            thread::sleep(time);
        }
    }
    0
}

/// Makes 500 processes in sessions of their own, created by processes that have exited, deaf to
/// SIGTERM.
pub(crate) fn tree(args: &mut Args) -> i32 {
    let [fuse, settled] = prepare_with_count(args);
    for _ in 0..TREE_BRANCHES {
        part(&fuse, || {
            _ = setsid();
            set(Signal::SIGTERM, SigHandler::SigIgn);
            for _ in 0..TREE_LEAVES {
                part(&fuse, || {
                    part(&fuse, || daemon(&settled));
                    0
                });
            }
            settled.burn();
            hold()
        });
    }
    let all = TREE_BRANCHES * (TREE_LEAVES + 1);
    until(|| settled.burnt() == u64::from(all));
    commands()
}

fn daemon(settled: &Fuse) -> i32 {
    _ = setsid();
    settled.burn();
    hold()
}

/// Makes a supervisor of four supervisors of six workers each, all in sessions of their own.
/// Workers last 5 to 20 ms; whatever dies is replaced.
pub(crate) fn respawn(args: &mut Args) -> i32 {
    let fuse = prepare(args);
    let worker = || {
        thread::sleep(Duration::from_micros(5_000 + u64::from(die_cast(15_000))));
        0
    };
    part(&fuse, || {
        supervise(&fuse, SUPERVISORS, || supervise(&fuse, WORKERS, worker))
    });
    burning(&fuse)
}

fn supervise(fuse: &Fuse, count: usize, body: impl Fn() -> i32) -> i32 {
    _ = setsid();
    set(Signal::SIGCHLD, SigHandler::SigDfl);
    let mut alive = 0;
    while fuse.burnt() < MADE_MAX {
        while alive < count {
            part(fuse, &body);
            alive += 1;
        }
        if nix::sys::wait::wait().is_ok() {
            alive -= 1;
        }
    }
    0
}

/// Makes six processes that start `/bin/true` by vfork and exec as fast as they can.
pub(crate) fn vfork_burst(args: &mut Args) -> i32 {
    let fuse = prepare(args);
    for _ in 0..LAUNCHERS {
        part(&fuse, || {
            while fuse.burn() {
                if vfork_true().is_none() {
                    thread::sleep(FULL_PAUSE);
                }
            }
            0
        });
    }
    burning(&fuse)
}

/// Makes eight threads of one process that fork at once; every fourth child forks again into a
/// session of its own and exits.
pub(crate) fn forking_threads(args: &mut Args) -> i32 {
    let fuse = prepare(args);
    part(&fuse, || {
        let threads = [(); THREADS].map(|()| thread::spawn(move || fork_in_thread(fuse)));
        for thread in threads {
            _ = thread.join();
        }
        0
    });
    burning(&fuse)
}

/// Forks as a thread may: the children of a process with threads do nothing but system calls.
fn fork_in_thread(fuse: Fuse) {
    while let Some(is_child) = split(&fuse) {
        if !is_child {
            continue;
        }
        if die_cast(4) == 0 {
            _ = setsid();
            _ = split(&fuse);
        }
        thread::sleep(Duration::from_millis(3));
        exit_now(0);
    }
}

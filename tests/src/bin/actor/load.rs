//! Many processes: `burst N` as fast as possible, `burst-hold N KEPT` with some that stay among
//! them, `forever-forking MS LOG [MAX]` for a time. All bounded in how many live at once and how
//! many are made, all counted by the creators.

use std::io::stdin;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use serde_json::json;

use crate::args::Args;
use crate::log::{Log, Tally};
use crate::process::{hold, spawn, try_spawn, until};
use crate::talk::{begin, commands, commands_and, fail, next_line, report, say};

const BURST_MAX: u32 = 100_000;
const BURST_ALIVE_MAX: usize = 32;
const CODES: u32 = 7;
const KEPT_MAX: u32 = 500;
const FOREVER_MS_MAX: u32 = 60_000;
const FOREVER_MAX: u32 = 200_000;
/// Direct children alive at once; each third one adds a grandchild.
const FOREVER_ALIVE: usize = 8;

/// Makes N children, at most 32 alive; child number i exits with i % 7.
pub(crate) fn burst(args: &mut Args) -> i32 {
    let count = args.count("processes", BURST_MAX);
    begin();
    let mut codes = [0_u32; CODES as usize];
    let mut alive = 0;
    for number in 0..count {
        if alive == BURST_ALIVE_MAX {
            codes[reap_any()] += 1;
            alive -= 1;
        }
        spawn(|| (number % CODES).cast_signed());
        alive += 1;
    }
    (0..alive).for_each(|_| codes[reap_any()] += 1);
    say(&json!({"created": count, "codes": codes}));
    commands()
}

/// Does the same, with KEPT children that stay among them, as far apart as possible; role `kept`.
pub(crate) fn burst_hold(args: &mut Args) -> i32 {
    let count = args.count("processes", BURST_MAX);
    let kept = args.count("kept", KEPT_MAX);
    begin();
    let mut alive = 0;
    for number in 0..count {
        if is_kept(number, kept, count) {
            report(spawn(|| hold()), "kept");
        }
        if alive == BURST_ALIVE_MAX {
            reap_any();
            alive -= 1;
        }
        spawn(|| (number % CODES).cast_signed());
        alive += 1;
    }
    (0..alive).for_each(|_| _ = reap_any());
    commands()
}

/// Returns whether number `number` of `count` is one of `kept` at equal distances.
fn is_kept(number: u32, kept: u32, count: u32) -> bool {
    let so_far = |number: u32| u64::from(number) * u64::from(kept) / u64::from(count);
    so_far(number + 1) > so_far(number)
}

/// Returns the exit code of whichever child ends next.
fn reap_any() -> usize {
    match waitpid(None, None) {
        Ok(WaitStatus::Exited(_, code)) => (code.cast_unsigned() % CODES) as usize,
        other => fail(&format!("wait: {other:?}")),
    }
}

/// Keeps eight children alive that fork and exit, for MS milliseconds, until the line `stop`, or
/// until MAX (50,000) are made. Waits for all, orphans too, and says how many there were.
pub(crate) fn forever_forking(args: &mut Args) -> i32 {
    let time = Duration::from_millis(args.count("milliseconds", FOREVER_MS_MAX).into());
    let log = args.path("log");
    let max = args.count_or("processes", 50_000, FOREVER_MAX) as usize;
    let log = Log::open(&log);
    begin();
    let (start, actor) = (Instant::now(), getpid());
    let mut tally = Tally::new();
    let (mut alive, mut stopped) = (0, false);
    for number in 0_u64.. {
        stopped = line_waits();
        // This one, and a grandchild of it and of each that lives, may not be counted yet.
        let full = tally.counted() + FOREVER_ALIVE + 2 > max;
        if stopped || full || start.elapsed() >= time {
            break;
        }
        while alive > 0 && has_reaped(alive >= FOREVER_ALIVE) {
            alive -= 1;
        }
        spawn(|| short_life(number, actor, &log, &tally));
        tally.add();
        alive += 1;
        tally.drain();
    }
    (0..alive).for_each(|_| _ = has_reaped(true));
    tally.close();
    until(|| tally.drain());
    if stopped {
        _ = next_line();
    }
    say(&json!({"created": tally.counted()}));
    // A stop that came too late changes nothing.
    commands_and(|line| line == "stop")
}

/// Makes a short life; every third one is a double fork into another session, whose grandchild is
/// an orphan.
fn short_life(number: u64, actor: Pid, log: &Log, tally: &Tally) -> i32 {
    log.enter(actor);
    if number.is_multiple_of(3) {
        _ = setsid();
        let middle = getpid();
        let grandchild = try_spawn(|| {
            log.enter(middle);
            0
        });
        if grandchild.is_ok() {
            tally.add();
        }
    }
    0
}

fn has_reaped(wait: bool) -> bool {
    let flags = if wait {
        WaitPidFlag::empty()
    } else {
        WaitPidFlag::WNOHANG
    };
    match waitpid(None, Some(flags)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => false,
        Ok(_) => true,
        Err(errno) => fail(&format!("wait: {errno}")),
    }
}

/// Returns whether there is something to read: a line, or the end of stdin.
pub(crate) fn line_waits() -> bool {
    let stdin = stdin();
    let mut sources = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    poll(&mut sources, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

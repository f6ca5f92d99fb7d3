//! What tracking costs those who are tracked: a loop of fork, exit and wait, with nothing attached,
//! with the host's tracker on, and with the loop watched besides.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::stats::Figures;
use super::{TrackerOn, lifemon, ready};

const ROUNDS: usize = 15;
const FORKS: u32 = 3_000;

/// Runs the loop itself: for each line that comes it takes `count` turns, and prints how long they
/// took, in ns.
pub(super) fn run_loop(count: u32) {
    println!("ready");
    for _ in std::io::stdin().lines() {
        println!("{}", turns(count).as_nanos());
    }
}

fn turns(count: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        // SAFETY: this process has one thread, and the child exits at once.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(0) }
            }
            Ok(ForkResult::Parent { child }) => {
                let _ = waitpid(child, None);
            }
            Err(error) => panic!("fork: {error}"),
        }
    }
    start.elapsed()
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nothing,
    Tracked,
    Watched,
}

pub(super) fn measure() {
    let modes = [Mode::Nothing, Mode::Tracked, Mode::Watched];
    let (mut tracked, mut watched) = (Figures::default(), Figures::default());
    let mut turn_us = Figures::default();
    for round in 0..ROUNDS {
        let mut ns = [0.0; 3];
        for turn in 0..modes.len() {
            // Each mode comes first, second and last equally often.
            let index = (round + turn) % modes.len();
            ns[index] = time(modes[index]);
        }
        turn_us.push(ns[0] / 1e3 / f64::from(FORKS));
        tracked.push(ns[0] / ns[1]);
        watched.push(ns[0] / ns[2]);
    }
    println!(
        "fork+exit+wait, nothing attached: {}",
        turn_us.line("us a turn")
    );
    for (what, figures) in [("tracker on, not watched", tracked), ("watched", watched)] {
        println!(
            "fork+exit+wait, {what}: speed {:.3} of that with nothing attached (median; lowest \
            {:.3}, highest {:.3}, n {ROUNDS}, {FORKS} turns each)",
            figures.at(0.5),
            figures.at(0.0),
            figures.at(1.0),
        );
    }
}

/// Measures the time of the loop in one mode, in ns.
fn time(mode: Mode) -> f64 {
    let _tracker = (mode != Mode::Nothing).then(TrackerOn::new);
    let own = std::env::current_exe().expect("the path of this program");
    let mut child = Command::new(own)
        .args(["loop", &FORKS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the loop");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("ready");
    let watcher = (mode == Mode::Watched).then(|| watch(child.id()));
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"go\n")
        .expect("go");
    line.clear();
    out.read_line(&mut line).expect("a time");
    let _ = child.wait();
    if let Some(mut watcher) = watcher {
        ready::end(&mut watcher);
    }
    line.trim().parse().expect("ns")
}

/// Starts a lifemon that watches the loop, its output read by a process that throws it away.
fn watch(pid: u32) -> Child {
    let mut watcher = lifemon()
        .args(["attach", "-o", "json", &pid.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("lifemon");
    let mut out = BufReader::new(watcher.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a snapshot");
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    watcher
}

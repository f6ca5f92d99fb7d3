//! `lifemon orphans` on a host with 10,000 processes, with the host's tracker on and off: the time
//! of the whole run and its peak of resident memory.

use std::process::Stdio;
use std::time::Instant;

use lifemon_tests::host_lock;

use super::stats::Figures;
use super::walk::Server;
use super::{TrackerOn, lifemon};

const SERVERS: usize = 4;
const ROUNDS: usize = 3;

pub(super) fn measure() {
    let _alone = host_lock();
    let tracker = TrackerOn::new();
    let mut servers = [(); SERVERS].map(|()| Server::new());
    line("tracker on, none left behind");
    servers[0].kill();
    line("tracker on, 2,499 left behind");
    drop(tracker);
    line("tracker off");
    drop(servers);
}

fn line(what: &str) {
    for words in [
        &["orphans", "-o", "json"][..],
        &["orphans", "--all", "-o", "json"],
    ] {
        form(what, words);
    }
}

fn form(what: &str, words: &[&str]) {
    let (mut times, mut peaks) = (Figures::default(), Figures::default());
    for _ in 0..ROUNDS {
        let (ms, mib) = cost(words);
        times.push(ms);
        peaks.push(mib);
    }
    println!(
        "{}, 10,000 processes, {what}: {}; {}",
        words.join(" "),
        times.line("ms"),
        peaks.line("MiB")
    );
}

/// Runs a command to its end; returns its time in ms and its peak of resident memory in MiB.
#[expect(
    clippy::zombie_processes,
    reason = "it is reaped by the call that says what it cost"
)]
fn cost(words: &[&str]) -> (f64, f64) {
    let mut command = lifemon();
    command.args(words).stdout(Stdio::null());
    let start = Instant::now();
    let child = command.spawn().expect("lifemon");
    let mut status = 0;
    // SAFETY: a structure of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a child of ours that nobody else reaps, and two places that live until the return.
    let reaped =
        unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
    let ms = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(reaped, child.id().cast_signed(), "it ended");
    assert_eq!(status, 0, "it succeeded");
    let peak_kib = i32::try_from(usage.ru_maxrss).expect("less than 2 TiB");
    (ms, f64::from(peak_kib) / 1_024.0)
}

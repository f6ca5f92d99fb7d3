//! Time from the start of `lifemon attach` until its snapshot is printed, and its memory then.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stats::Figures;
use super::{TrackerOn, lifemon};

const ROUNDS: u32 = 20;

pub(super) fn measure() {
    let mut sleeper = Command::new("sleep").arg("100").spawn().expect("sleep");
    let (mut off, mut on) = (Figures::default(), Figures::default());
    let (mut off_kib, mut on_kib) = (Figures::default(), Figures::default());
    for _ in 0..ROUNDS {
        let (ms, kib) = attach(sleeper.id());
        off.push(ms);
        off_kib.push(kib);
        let tracker = TrackerOn::new();
        let (ms, kib) = attach(sleeper.id());
        drop(tracker);
        on.push(ms);
        on_kib.push(kib);
    }
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    println!(
        "attach: start to snapshot printed, tracker off: {}",
        off.line("ms")
    );
    println!(
        "attach: start to snapshot printed, tracker on:  {}",
        on.line("ms")
    );
    println!(
        "attach: resident while it watches, tracker off: {}",
        off_kib.line("KiB")
    );
    println!(
        "attach: resident while it watches, tracker on:  {}",
        on_kib.line("KiB")
    );
}

/// Attaches once: time to the snapshot in ms, resident memory then in KiB.
fn attach(pid: u32) -> (f64, f64) {
    let start = Instant::now();
    let mut child = lifemon()
        .args(["attach", "-o", "json", &pid.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("lifemon");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("a snapshot");
    let ms = start.elapsed().as_secs_f64() * 1e3;
    assert!(line.contains("attached"), "no snapshot: {line}");
    let kib = resident_kib(child.id());
    end(&mut child);
    (ms, kib)
}

/// Ends a lifemon that this program started.
pub(super) fn end(child: &mut Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = kill(pid, Signal::SIGINT);
    let _ = child.wait();
}

fn resident_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(f64::NAN)
}

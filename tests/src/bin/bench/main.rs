//! The benchmark of lifemon: prints its figures, decides nothing. Every comparison is interleaved
//! in one run, and every figure comes with its count. Run it with `cargo xtask bench`.

mod agent;
mod death;
mod fork_loop;
mod kill;
mod kill_bombs;
mod orphans;
mod ready;
mod serve;
mod stats;
mod walk;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use lifemon_tests::{HostLock, host_lock};

fn main() -> ExitCode {
    // The guardian of the managers that are measured.
    lifemon::manager::run_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_measured = !matches!(words.as_slice(), ["loop" | "quiet", _]);
    if is_measured {
        machine();
    }
    match words.as_slice() {
        // The processes that are measured, started by this program itself.
        ["loop", count] => fork_loop::run_loop(count.parse().unwrap_or(0)),
        ["quiet", count] => kill::run_quiet(count.parse().unwrap_or(1)),
        [] => {
            ready::measure();
            death::measure();
            fork_loop::measure();
            kill::measure();
            kill_bombs::measure();
            walk::measure();
            orphans::measure();
            serve::measure();
            agent::measure();
        }
        ["ready"] => ready::measure(),
        ["death"] => death::measure(),
        ["fork-loop"] => fork_loop::measure(),
        ["kill"] => kill::measure(),
        ["kill-bombs"] => kill_bombs::measure(),
        ["walk"] => walk::measure(),
        ["orphans"] => orphans::measure(),
        ["serve"] => serve::measure(),
        ["agent"] => agent::measure(),
        ["agent-answers"] => agent::measure_answers(),
        ["agent-million"] => agent::million::measure(),
        _ => {
            eprintln!(
                "usage: bench [ready | death | fork-loop | kill | kill-bombs | walk | orphans | serve | agent \
                | agent-answers | agent-million]"
            );
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Says where this ran.
fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    println!(
        "kernel {}, {cores} cores, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default(),
    );
}

/// Returns the lifemon binary: `LIFEMON_BIN`, or the one beside this program.
fn lifemon() -> Command {
    let beside = || {
        let own = std::env::current_exe().expect("the path of this program");
        own.with_file_name("lifemon")
    };
    let path = std::env::var_os("LIFEMON_BIN").map_or_else(beside, PathBuf::from);
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Switches the host's tracker, quietly.
fn track(action: &str) {
    let status = lifemon()
        .args(["track", action])
        .stdout(Stdio::null())
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "track {action} failed"
    );
}

/// The host's tracker, on until this is dropped. Tests of other checkouts wait meanwhile.
struct TrackerOn(#[expect(dead_code, reason = "held for its drop")] HostLock);

impl TrackerOn {
    fn new() -> Self {
        let lock = host_lock();
        track("on");
        Self(lock)
    }
}

impl Drop for TrackerOn {
    fn drop(&mut self) {
        track("off");
    }
}

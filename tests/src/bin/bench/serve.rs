//! The server author's side: from SIGKILL of a worker until the manager's check fails, beside a
//! pidfd and a loop that polls at the old interval; what the check and the guardian cost; and what
//! `lifemon run` adds to a command, beside tini.

use std::fs;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifemon::manager::{Options, ProcessManager, WorkerCommand};
use lifemon_tests::Pidfd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lifemon;
use super::stats::Figures;

/// A manager each, because only the healthy path of the check is free of locks.
const MANAGERS: usize = 100;
const CHECKS: u32 = 20_000_000;
const RUNS: u32 = 200;
const POLLS: u32 = 8;

/// The interval of the Python module.
const POLL: Duration = Duration::from_secs(5);

pub(super) fn measure() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(deaths());
    polling();
    starts();
}

async fn manager(use_ebpf: bool) -> ProcessManager {
    let worker = WorkerCommand::new("sleep").arg("300");
    let options = Options::new([worker]).signals(false).use_ebpf(use_ebpf);
    let manager = ProcessManager::start(options).await.expect("workers");
    let way = if use_ebpf { "ebpf" } else { "subreaper" };
    while manager.health_status().way.word() != way {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    manager
}

async fn deaths() {
    let (mut events, mut guardian, mut pidfd) =
        (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..MANAGERS {
        let (by_events, by_guardian) = (manager(true).await, manager(false).await);
        cost(&by_events);
        events.push(until_known(&by_events));
        guardian.push(until_known(&by_guardian));
        pidfd.push(until_pidfd());
        by_events.shutdown().await;
        by_guardian.shutdown().await;
    }
    println!("SIGKILL to failing check, ebpf:      {}", events.line("us"));
    println!(
        "SIGKILL to failing check, subreaper: {}",
        guardian.line("us")
    );
    println!("SIGKILL to known, thread at a pidfd: {}", pidfd.line("us"));
    println!(
        "ratio to pidfd: ebpf p50 {:.2} p99 {:.2}, subreaper p50 {:.2} p99 {:.2}",
        events.at(0.5) / pidfd.at(0.5),
        events.at(0.99) / pidfd.at(0.99),
        guardian.at(0.5) / pidfd.at(0.5),
        guardian.at(0.99) / pidfd.at(0.99)
    );
}

/// Kills the worker, and asks until the check fails.
fn until_known(manager: &ProcessManager) -> f64 {
    // Let the host come to rest.
    std::thread::sleep(Duration::from_millis(3));
    let pid = manager.pids()[0].expect("a pid").cast_signed();
    let start = Instant::now();
    // It is a child of the guardian, and not dead yet.
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    while manager.check_workers_alive().is_ok() {
        std::thread::yield_now();
    }
    start.elapsed().as_secs_f64() * 1e6
}

/// Measures the same with a thread that waits for a pidfd.
fn until_pidfd() -> f64 {
    let mut worker = Command::new("sleep").arg("300").spawn().expect("sleep");
    let pidfd = Pidfd::open(worker.id().cast_signed()).expect("it lives");
    let is_dead = AtomicBool::new(false);
    let us = std::thread::scope(|scope| {
        scope.spawn(|| {
            pidfd.wait_gone(Duration::from_secs(10));
            is_dead.store(true, Ordering::Release);
        });
        std::thread::sleep(Duration::from_millis(3));
        let start = Instant::now();
        pidfd.kill();
        while !is_dead.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        start.elapsed().as_secs_f64() * 1e6
    });
    let _ = worker.wait();
    us
}

/// Prints what the check costs, and what the guardian needs.
fn cost(manager: &ProcessManager) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let start = Instant::now();
        for _ in 0..CHECKS {
            black_box(black_box(manager).check_workers_alive().is_ok());
        }
        let ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS);
        println!("check_workers_alive: {ns:.2} ns (n {CHECKS})");
        let guardian = manager.guardian().expect("a guardian");
        println!("guardian: {}", memory(guardian));
    });
}

fn memory(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = status.lines().filter(|line| {
        line.starts_with("VmRSS") || line.starts_with("RssAnon") || line.starts_with("RssFile")
    });
    let lines: Vec<_> = lines.map(|line| line.replace('\t', " ")).collect();
    lines.join(", ")
}

/// Does what the module does that this replaces: sleep, look, sleep.
fn polling() {
    let mut figures = Figures::default();
    for round in 0..POLLS {
        let mut worker = Command::new("sleep").arg("300").spawn().expect("sleep");
        let begun = Instant::now();
        let phase = POLL / POLLS * round;
        let mut killed = None;
        loop {
            let next = begun + POLL;
            if killed.is_none() {
                std::thread::sleep(phase);
                worker.kill().expect("kill");
                killed = Some(Instant::now());
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            if worker.try_wait().expect("wait").is_some() {
                break;
            }
        }
        let killed = killed.expect("killed");
        figures.push(killed.elapsed().as_secs_f64() * 1e6);
    }
    println!(
        "SIGKILL to known, poll every 5 s:    {}",
        figures.line("us")
    );
}

/// Measures the start of a command that does nothing: alone, under lifemon, under tini.
fn starts() {
    let has_tini = Command::new("tini")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    let (mut plain, mut ours, mut tini) =
        (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..RUNS {
        plain.push(ms(&mut Command::new("true")));
        ours.push(ms(lifemon().args(["run", "--", "true"])));
        if has_tini {
            tini.push(ms(Command::new("tini").args(["-s", "--", "true"])));
        }
    }
    println!("true:                {}", plain.line("ms"));
    println!("lifemon run -- true: {}", ours.line("ms"));
    if has_tini {
        println!("tini -s -- true:     {}", tini.line("ms"));
    }
    let mut run = lifemon()
        .args(["run", "--", "sleep", "20"])
        .spawn()
        .expect("lifemon");
    std::thread::sleep(Duration::from_millis(200));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id()));
    let guardian = children.unwrap_or_default();
    println!("lifemon run, owner: {}", memory(run.id()));
    if let Ok(guardian) = guardian.trim().parse() {
        println!("lifemon run, guardian: {}", memory(guardian));
    }
    let _ = run.kill();
    let _ = run.wait();
}

fn ms(command: &mut Command) -> f64 {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).status().expect("a command");
    assert!(status.success());
    start.elapsed().as_secs_f64() * 1e3
}

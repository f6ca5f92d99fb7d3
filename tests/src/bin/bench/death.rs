//! From SIGKILL of a worker until somebody knows: a process that reads lifemon's JSON, and beside
//! it in the same run, in turn, a process that waits for the pidfd.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause};

use super::stats::Figures;
use super::{TrackerOn, lifemon, ready};

const SMALL_ROUNDS: u32 = 300;
const LARGE_ROUNDS: u32 = 12;
const LARGE_BYTES: usize = 1 << 30;

pub(super) fn measure() {
    let _tracker = TrackerOn::new();
    let mut watcher = Watcher::new();
    compare(&mut watcher, "small worker", SMALL_ROUNDS, 0);
    compare(&mut watcher, "1 GiB worker", LARGE_ROUNDS, LARGE_BYTES);
    ready::end(&mut watcher.child);
}

fn compare(watcher: &mut Watcher, what: &str, rounds: u32, bytes: usize) {
    let (mut ours, mut pidfd) = (Figures::default(), Figures::default());
    for _ in 0..rounds {
        ours.push(by_lifemon(watcher, bytes));
        pidfd.push(by_pidfd(bytes));
    }
    println!(
        "SIGKILL to known, {what}, lifemon's JSON: {}",
        ours.line("us")
    );
    println!(
        "SIGKILL to known, {what}, pidfd + epoll:  {}",
        pidfd.line("us")
    );
    println!(
        "SIGKILL to known, {what}, ratio: p50 {:.3}, p99 {:.3}",
        ours.at(0.5) / pidfd.at(0.5),
        ours.at(0.99) / pidfd.at(0.99)
    );
}

/// A lifemon that watches this very process.
struct Watcher {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Watcher {
    fn new() -> Self {
        let own = std::process::id().to_string();
        let mut child = lifemon()
            .args(["attach", "-o", "json", &own])
            .stdout(Stdio::piped())
            .spawn()
            .expect("lifemon");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let mut watcher = Self { child, out };
        watcher.wait_for("attached", None);
        watcher
    }

    /// Reads lines until `event` about `pid`.
    fn wait_for(&mut self, event: &str, pid: Option<Pid>) {
        let event = format!("\"event\":\"{event}\"");
        let about = pid.map(|pid| format!("\"process\":{{\"pid\":{pid},"));
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.out.read_line(&mut line).expect("lifemon's output") > 0,
                "lifemon ended"
            );
            if line.contains(&event) && about.as_ref().is_none_or(|about| line.contains(about)) {
                return;
            }
        }
    }
}

/// Makes a worker with `bytes` of touched memory, ready to be killed.
fn worker(bytes: usize) -> Pid {
    let (ready, at_work) = nix::unistd::pipe().expect("a pipe");
    // SAFETY: this program has one thread; the child touches memory, writes a byte and pauses.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            drop(at_work);
            let mut byte = [0];
            let read = nix::unistd::read(&ready, &mut byte);
            assert_eq!(read, Ok(1), "the worker did not start");
            // Let the host come to rest.
            std::thread::sleep(Duration::from_millis(3));
            child
        }
        ForkResult::Child => {
            let memory = vec![1_u8; bytes];
            let _ = nix::unistd::write(&at_work, &[memory.first().copied().unwrap_or(1)]);
            nix::unistd::alarm::set(60);
            loop {
                pause();
            }
        }
    }
}

fn by_lifemon(watcher: &mut Watcher, bytes: usize) -> f64 {
    let worker = worker(bytes);
    let start = Instant::now();
    kill(worker, Signal::SIGKILL).expect("kill");
    watcher.wait_for("exit", Some(worker));
    let us = start.elapsed().as_secs_f64() * 1e6;
    let _ = waitpid(worker, None);
    us
}

fn by_pidfd(bytes: usize) -> f64 {
    let worker = worker(bytes);
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, worker.as_raw(), 0) };
    assert!(fd >= 0, "pidfd_open failed");
    // SAFETY: the call returned a new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    let token = u64::from(fd.as_raw_fd().cast_unsigned());
    epoll
        .add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, token))
        .expect("epoll add");
    let start = Instant::now();
    kill(worker, Signal::SIGKILL).expect("kill");
    let mut events = [EpollEvent::empty()];
    epoll
        .wait(&mut events, EpollTimeout::NONE)
        .expect("epoll wait");
    let us = start.elapsed().as_secs_f64() * 1e6;
    let _ = waitpid(worker, None);
    us
}

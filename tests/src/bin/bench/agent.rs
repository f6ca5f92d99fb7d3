//! The node agent: what it costs while nothing happens and while processes come and go, how fast it
//! answers a hundred clients, how long a guard takes to end a tree, and how long nobody answers
//! when it is killed and started again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::Pidfd;

use super::stats::Figures;
use super::{TrackerOn, lifemon};

const IDLE: Duration = Duration::from_secs(10);
const CLIENTS: usize = 100;
const REQUESTS: usize = 20;
const GUARDS: usize = 50;
const RESTARTS: usize = 20;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Agent {
    child: Child,
    directory: PathBuf,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        let child = lifemon()
            .args(["agent", "--runtime-dir"])
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let agent = Self {
            child,
            directory: directory.to_owned(),
        };
        while agent.try_connect().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        agent
    }

    fn try_connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.directory.join("lifemon.sock")).ok()
    }

    /// Returns the pids of the core and of its fronts.
    fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        [own].into_iter().chain(children).collect()
    }

    /// Returns the time on processors of all of them.
    fn cpu(&self) -> Duration {
        let of = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
            // Of all threads.
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten();
            let sum: u64 = tasks
                .flatten()
                .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
                .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
                .sum();
            sum.max(
                text.split(' ')
                    .next()
                    .and_then(|ns| ns.parse().ok())
                    .unwrap_or(0),
            )
        };
        Duration::from_nanos(self.pids().into_iter().map(of).sum())
    }

    /// Returns the proportional and the resident memory of all of them, in KiB.
    fn memory(&self) -> (u64, u64) {
        let field = |pid: u32, name: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
                .unwrap_or(0)
        };
        let pids = self.pids();
        let sum = |name| pids.iter().map(|pid| field(*pid, name)).sum();
        (sum("Pss:"), sum("Rss:"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn measure() {
    let _tracker = TrackerOn::new();
    let directory =
        std::env::temp_dir().join(format!("lifemon-bench-agent-{}", std::process::id()));
    {
        let agent = Agent::start(&directory);
        idle(&agent);
        load(&agent);
        for path in ["/v1/tree/self", "/v1/orphans", "/v1/health/self"] {
            latency(&agent, path);
        }
        let (pss, rss) = agent.memory();
        println!(
            "agent, memory after that: {pss} KiB proportional, {rss} KiB resident, in 3 processes"
        );
        guards(&agent);
    }
    restarts(&directory);
    let _ = fs::remove_dir_all(&directory);
}

fn idle(agent: &Agent) {
    thread::sleep(Duration::from_secs(12));
    let before = agent.cpu();
    thread::sleep(IDLE);
    let used = agent.cpu().saturating_sub(before);
    let (pss, rss) = agent.memory();
    println!("agent, idle for {IDLE:?}: {used:?} of processor time");
    println!("agent, memory at first: {pss} KiB proportional, {rss} KiB resident, in 3 processes");
}

fn load(agent: &Agent) {
    let before = agent.cpu();
    let begun = Instant::now();
    let mut made = 0_u32;
    while begun.elapsed() < Duration::from_secs(5) {
        let _ = Command::new("true").status();
        made += 1;
    }
    let used = agent.cpu().saturating_sub(before);
    println!("agent, while {made} processes come and go in 5 s: {used:?} of processor time");
}

/// Asks, and reads the whole answer; returns its status line.
fn ask(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).expect("it listens");
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let length = socket.read(&mut buffer).expect("it answers");
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.parse::<usize>().ok())?
            });
            length.is_some_and(|length| body.len() >= length)
        });
        if whole || length == 0 {
            return text.into_owned();
        }
    }
}

fn latency(agent: &Agent, path: &'static str) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut socket = agent.try_connect().expect("it listens");
            thread::spawn(move || {
                (0..REQUESTS)
                    .map(|_| {
                        let begun = Instant::now();
                        let answer = ask(&mut socket, "GET", path, "");
                        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                        begun.elapsed()
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut figures = Figures::default();
    for client in clients {
        client
            .join()
            .expect("no panic")
            .into_iter()
            .for_each(|time| figures.push(ms(time)));
    }
    println!(
        "agent, {CLIENTS} clients at once, {path}: {}",
        figures.line("ms")
    );
    let mut alone = Figures::default();
    let mut socket = agent.try_connect().expect("it listens");
    for _ in 0..200 {
        let begun = Instant::now();
        ask(&mut socket, "GET", path, "");
        alone.push(ms(begun.elapsed()));
    }
    println!("agent, one client, {path}: {}", alone.line("ms"));
}

fn guards(agent: &Agent) {
    let mut figures = Figures::default();
    let mut socket = agent.try_connect().expect("it listens");
    for _ in 0..GUARDS {
        let mut owner = Command::new("sleep").arg("300").spawn().expect("sleep");
        let mut tree = Command::new("sleep").arg("300").spawn().expect("sleep");
        let body = format!(
            "{{\"owner\":\"ns:{}\",\"trees\":[\"ns:{}\"]}}",
            owner.id(),
            tree.id()
        );
        let answer = ask(&mut socket, "POST", "/v1/guards", &body);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let dead = Pidfd::open(tree.id().cast_signed()).expect("it lives");
        let begun = Instant::now();
        let _ = owner.kill();
        dead.wait_gone(Duration::from_secs(10));
        figures.push(ms(begun.elapsed()));
        let _ = (owner.wait(), tree.wait());
    }
    println!(
        "agent, from the owner's SIGKILL until a guarded process is gone: {}",
        figures.line("ms")
    );
}

fn restarts(directory: &Path) {
    let mut figures = Figures::default();
    let mut agent = Agent::start(directory);
    for _ in 0..RESTARTS {
        let begun = Instant::now();
        drop(agent);
        agent = Agent::start(directory);
        let mut socket = agent.try_connect().expect("it listens");
        ask(&mut socket, "GET", "/v1/info", "");
        figures.push(ms(begun.elapsed()));
    }
    println!(
        "agent, killed, started again, and the first answer: {}",
        figures.line("ms")
    );
}

//! The node agent: what it costs while nothing happens and while processes come and go, how fast it
//! answers a hundred clients, how long a guard takes to end a tree, and how long nobody answers
//! when it is killed and started again.

pub(super) mod million;
mod rate;
mod running;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::Pidfd;

use super::TrackerOn;
use super::stats::Figures;
use running::{Agent, ask, children};

const IDLE: Duration = Duration::from_secs(10);
const IDLE_ROUNDS: usize = 3;
/// Longer than threads of the agent wait for more work.
const SETTLE: Duration = Duration::from_secs(12);
const CLIENTS: usize = 100;
const REQUESTS: usize = 20;
const GUARDS: usize = 50;
const RESTARTS: usize = 20;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns where the agent has its sockets and its state.
fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("lifemon-bench-agent-{}", std::process::id()))
}

pub(super) fn measure() {
    let _tracker = TrackerOn::new();
    let directory = directory();
    {
        let agent = Agent::start(&directory);
        thread::sleep(SETTLE);
        agent.print_memory("at first");
        idle(&agent);
        answers(&agent);
        agent.print_memory("after the last answer");
        thread::sleep(SETTLE);
        agent.print_memory(&format!("{SETTLE:?} later"));
        rate::measure(&agent);
        guards(&agent);
    }
    restarts(&directory);
    let _ = std::fs::remove_dir_all(&directory);
}

/// Measures the answers alone: to run it with two programs in turn.
pub(super) fn measure_answers() {
    let _tracker = TrackerOn::new();
    let directory = directory();
    answers(&Agent::start(&directory));
    let _ = std::fs::remove_dir_all(&directory);
}

fn answers(agent: &Agent) {
    for path in ["/v1/tree/self", "/v1/orphans", "/v1/health/self"] {
        latency(agent, path);
    }
}

fn idle(agent: &Agent) {
    let mut percent = Figures::default();
    for _ in 0..IDLE_ROUNDS {
        let before = agent.cpu();
        thread::sleep(IDLE);
        let used = agent.cpu().saturating_sub(before);
        percent.push(used.as_secs_f64() / IDLE.as_secs_f64() * 100.0);
    }
    println!(
        "agent, idle: {:.3} % of a processor, at most {:.3} % (n {IDLE_ROUNDS} of {IDLE:?})",
        percent.at(0.5),
        percent.at(1.0)
    );
}

fn latency(agent: &Agent, path: &'static str) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut socket = agent.connect();
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
        let times = client.join().expect("no panic");
        for time in times {
            figures.push(ms(time));
        }
    }
    println!(
        "agent, {CLIENTS} clients at once, {path}: {}",
        figures.line("ms")
    );
    let mut alone = Figures::default();
    let mut socket = agent.connect();
    for _ in 0..200 {
        let begun = Instant::now();
        ask(&mut socket, "GET", path, "");
        alone.push(ms(begun.elapsed()));
    }
    println!("agent, one client, {path}: {}", alone.line("ms"));
}

/// Starts a tree of four processes; returns its root, and a descriptor of each.
fn tree() -> (Child, Vec<Pidfd>) {
    let script = "sleep 300 & sleep 300 & sleep 300 & wait";
    let root = Command::new("sh").args(["-c", script]).spawn();
    let root = root.expect("sh");
    let below = loop {
        let below = children(root.id());
        if below.len() == 3 {
            break below;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let open = |pid: u32| Pidfd::open(pid.cast_signed()).expect("it lives");
    let members = [root.id()].into_iter().chain(below).map(open).collect();
    (root, members)
}

fn guards(agent: &Agent) {
    let mut figures = Figures::default();
    let mut socket = agent.connect();
    for _ in 0..GUARDS {
        let mut owner = Command::new("sleep").arg("300").spawn().expect("sleep");
        let (mut root, members) = tree();
        make_guard(&mut socket, &owner, &root);
        let begun = Instant::now();
        let _ = owner.kill();
        for member in members {
            member.wait_gone(Duration::from_secs(10));
        }
        figures.push(ms(begun.elapsed()));
        let _ = (owner.wait(), root.wait());
    }
    println!(
        "agent, from the owner's SIGKILL until its guarded tree of four is extinct: {}",
        figures.line("ms")
    );
}

fn make_guard(socket: &mut std::os::unix::net::UnixStream, owner: &Child, root: &Child) {
    let body = format!(
        "{{\"owner\":\"ns:{}\",\"trees\":[\"ns:{}\"],\"on_disconnect\":false}}",
        owner.id(),
        root.id()
    );
    let answer = ask(socket, "POST", "/v1/guards", &body);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

/// Kills an agent that has a guard, and the owner of that, and starts it again: until it answers, and
/// until the guard has ended its tree.
fn restarts(directory: &Path) {
    let (mut answers, mut fires) = (Figures::default(), Figures::default());
    let mut agent = Agent::start(directory);
    for _ in 0..RESTARTS {
        let mut owner = Command::new("sleep").arg("300").spawn().expect("sleep");
        let (mut root, members) = tree();
        make_guard(&mut agent.connect(), &owner, &root);
        let begun = Instant::now();
        drop(agent);
        let _ = (owner.kill(), owner.wait());
        agent = Agent::start(directory);
        let answer = ask(&mut agent.connect(), "GET", "/v1/info", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answers.push(ms(begun.elapsed()));
        for member in members {
            member.wait_gone(Duration::from_secs(10));
        }
        fires.push(ms(begun.elapsed()));
        let _ = root.wait();
    }
    println!(
        "agent, killed and started again, until the first answer: {}",
        answers.line("ms")
    );
    println!(
        "agent, the same, until the tree is extinct whose owner died meanwhile: {}",
        fires.line("ms")
    );
}

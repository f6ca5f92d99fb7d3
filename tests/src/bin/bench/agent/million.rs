//! Whether the agent's memory stays flat: one process makes a million children and reaps them, while
//! its tree is watched and the events are read.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::super::TrackerOn;
use super::directory;
use super::running::{Agent, ask, memory};

const STEPS: u32 = 4;
const CHILDREN: u32 = 250_000;
/// The agent gives memory back a second after its last work.
const SETTLE: Duration = Duration::from_secs(3);

pub(in super::super) fn measure() {
    let _tracker = TrackerOn::new();
    let directory = directory();
    let agent = Agent::start(&directory);
    let own = std::env::current_exe().expect("the path of this program");
    let mut maker = Command::new(own)
        .args(["loop", &CHILDREN.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the loop");
    let mut orders = maker.stdin.take().expect("piped");
    let mut out = BufReader::new(maker.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("ready");
    let mut socket = agent.connect();
    let body = format!("{{\"process\":\"ns:{}\"}}", maker.id());
    let watched = ask(&mut socket, "POST", "/v1/watches", &body);
    assert!(watched.starts_with("HTTP/1.1 201"), "{watched}");
    let mut stream = agent.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("it listens");
    let reading = thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    print(&agent, 0);
    let begun = Instant::now();
    for step in 1..=STEPS {
        orders.write_all(b"go\n").expect("go");
        line.clear();
        out.read_line(&mut line).expect("a time");
        print(&agent, step * CHILDREN);
    }
    println!(
        "agent, {} children took {:.0} s",
        STEPS * CHILDREN,
        begun.elapsed().as_secs_f64()
    );
    drop(orders);
    let _ = maker.wait();
    drop(agent);
    let bytes = reading.join().expect("no panic").unwrap_or_default();
    println!("agent, {} MiB of events were read", bytes >> 20);
    let _ = std::fs::remove_dir_all(&directory);
}

fn print(agent: &Agent, children: u32) {
    thread::sleep(SETTLE);
    let core = memory(agent.core());
    let fronts: u64 = agent.pids()[1..]
        .iter()
        .map(|pid| memory(*pid).resident)
        .sum();
    println!(
        "agent, after {children} children: core {} KiB resident, {} KiB private; fronts {fronts} KiB \
         resident",
        core.resident, core.private
    );
}

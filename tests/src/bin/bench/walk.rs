//! Questions about a host with 10,000 processes: the tree, what was left behind, who has a device
//! open; beside each what people use, in the same run, in turn. lifemon is measured as a whole
//! process, psutil without the start of Python.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use lifemon_tests::Sandbox;

use super::stats::Figures;
use super::{TrackerOn, lifemon};

/// Servers of so many processes each: a sandbox holds 3,000.
const SERVERS: usize = 4;
const PROCESSES: u32 = 2_500;
const ROUNDS: usize = 9;
/// A device node that hosts have, in the place of a GPU's.
const DEVICE: &str = "/dev/full";

/// Walks the tree of a process as psutil's documentation shows it, and names each; prints ms.
const PSUTIL: &str = "
import psutil, sys, time
start = time.perf_counter()
tree = psutil.Process(int(sys.argv[1])).children(recursive=True)
count = len(tree)
print((time.perf_counter() - start) * 1000, count)
";

/// A tree in a sandbox.
pub(super) struct Server {
    root: Child,
    _sandbox: Sandbox,
}

impl Server {
    pub(super) fn new() -> Self {
        let sandbox = Sandbox::new();
        let own = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(own);
        command
            .args(["quiet", &PROCESSES.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        sandbox.enter(&mut command);
        let mut root = command.spawn().expect("a server");
        let mut line = String::new();
        let mut out = BufReader::new(root.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("ready");
        Self {
            root,
            _sandbox: sandbox,
        }
    }

    /// Leaves its workers behind.
    pub(super) fn kill(&mut self) {
        let _ = self.root.kill();
        let _ = self.root.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Measures the whole run of a command, in ms; `None` when it is not there.
fn run(command: &mut Command) -> Option<f64> {
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let output = command.output().ok()?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    // fuser and lsof end with 1 when nobody has the file.
    output.status.code().filter(|code| *code <= 1).map(|_| ms)
}

fn lifemon_ms(words: &[&str]) -> f64 {
    run(lifemon().args(words)).expect("lifemon")
}

fn psutil_ms() -> Option<f64> {
    let own = std::process::id().to_string();
    let output = Command::new("python3")
        .args(["-c", PSUTIL, &own])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (ms, count) = text.trim().split_once(' ')?;
    let count: usize = count.parse().ok()?;
    assert!(count >= SERVERS * PROCESSES as usize, "psutil saw {count}");
    ms.parse().ok()
}

pub(super) fn measure() {
    let tracker = TrackerOn::new();
    let mut servers = [(); SERVERS].map(|()| Server::new());
    let own = std::process::id().to_string();
    let mut figures = [(); 4].map(|()| Figures::default());
    for _ in 0..ROUNDS {
        figures[0].push(lifemon_ms(&["orphans", "-o", "json"]));
        figures[1].push(lifemon_ms(&["tree", &own, "-o", "json"]));
        if let Some(ms) = psutil_ms() {
            figures[2].push(ms);
        }
        if let Some(ms) = run(Command::new("pstree").args(["-p", &own])) {
            figures[3].push(ms);
        }
    }
    let [orphans, tree, psutil, pstree] = &figures;
    line("orphans, none there", orphans);
    line("tree as JSON, with command lines", tree);
    line("psutil children(recursive=True)", psutil);
    line("pstree -p", pstree);
    ratio("orphans / psutil's walk", orphans, psutil);
    ratio("tree / psutil's walk", tree, psutil);

    servers[0].kill();
    let mut left = Figures::default();
    let [mut gpu, mut fuser, mut lsof] = [(); 3].map(|()| Figures::default());
    for _ in 0..ROUNDS {
        left.push(lifemon_ms(&["orphans", "-o", "json"]));
        gpu.push(lifemon_ms(&["gpu", "-o", "json", "--device", DEVICE]));
        if let Some(ms) = run(Command::new("fuser").args(["-v", DEVICE])) {
            fuser.push(ms);
        }
        if let Some(ms) = run(Command::new("lsof").arg(DEVICE)) {
            lsof.push(ms);
        }
    }
    line("orphans, 2,499 there", &left);
    line("gpu: who has a device open", &gpu);
    line("fuser -v", &fuser);
    line("lsof", &lsof);
    ratio("gpu / fuser", &gpu, &fuser);
    ratio("gpu / lsof", &gpu, &lsof);
    drop(servers);
    drop(tracker);
}

fn line(what: &str, figures: &Figures) {
    println!("10,000 processes, {what}: {}", figures.line("ms"));
}

fn ratio(what: &str, ours: &Figures, theirs: &Figures) {
    println!(
        "10,000 processes, {what}: {:.3} (medians)",
        ours.at(0.5) / theirs.at(0.5)
    );
}

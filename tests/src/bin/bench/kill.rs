//! Kill of a tree of quiet processes until none of it is left: lifemon, and beside it in the same
//! run, in turn, what people use. Every tree lives in a sandbox of its own, and whether it is gone
//! is read from the sandbox's control group, whoever killed it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lifemon_tests::{Pidfd, Sandbox, proc};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, alarm, fork, pause};

use super::stats::Figures;
use super::{TrackerOn, lifemon};

/// Processes of the tree, and rounds.
const SIZES: [(u32, usize); 3] = [(10, 15), (100, 11), (1_000, 7)];
/// A tree that nobody killed ends by itself.
const LIFETIME_S: u32 = 600;
const STEP: Duration = Duration::from_micros(100);

/// How long pgrep may walk.
const PGREP_MAX: Duration = Duration::from_secs(200);
/// Sizes from which one round of pgrep, a process for each process, is enough.
const SLOW_FROM: u32 = 1_000;

/// What psutil's documentation recommends; prints how long it took, the start of Python left out.
/// It waits until orphans are reaped, and so for the init of the host: measured without that wait
/// as well.
const PSUTIL: &str = "
import psutil, sys, time
start = time.perf_counter()
root = psutil.Process(int(sys.argv[1]))
tree = root.children(recursive=True) + [root]
for process in tree:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
psutil.wait_procs(tree, timeout=float(sys.argv[2]))
print((time.perf_counter() - start) * 1000)
";

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Method {
    Lifemon,
    LifemonTracked,
    CgroupKill,
    Psutil,
    PsutilWithoutWait,
    Pgrep,
}

impl Method {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lifemon => "lifemon, tracker off",
            Self::LifemonTracked => "lifemon, tracker on",
            Self::CgroupKill => "cgroup.kill",
            Self::Psutil => "psutil's recipe",
            Self::PsutilWithoutWait => "psutil's recipe without its wait",
            Self::Pgrep => "recursion over pgrep -P",
        }
    }
}

/// Makes the tree itself: the root makes the others, says so, and all of them sleep.
pub(super) fn run_quiet(count: u32) {
    for _ in 1..count {
        // SAFETY: this process has one thread, and the child does nothing but sleep.
        if let ForkResult::Child = unsafe { fork() }.expect("fork") {
            sleep();
        }
    }
    println!("ready");
    sleep();
}

fn sleep() -> ! {
    alarm::set(LIFETIME_S);
    loop {
        pause();
    }
}

/// A tree in its sandbox. What is left of it ends with the sandbox. The root is reaped as soon as
/// it is dead, as by a parent that cares.
struct Tree {
    root: u32,
    sandbox: Sandbox,
    parent: Option<JoinHandle<()>>,
}

impl Tree {
    fn new(count: u32) -> Self {
        let sandbox = Sandbox::new();
        let own = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(own);
        command
            .args(["quiet", &count.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        sandbox.enter(&mut command);
        let mut root = command.spawn().expect("the tree");
        let mut out = BufReader::new(root.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("ready");
        Self {
            root: root.id(),
            sandbox,
            parent: Some(thread::spawn(move || _ = root.wait())),
        }
    }

    /// Waits until nothing of it runs.
    fn wait_gone(&self) {
        while self.sandbox.pids().into_iter().any(proc::is_running) {
            thread::sleep(STEP);
        }
    }
}

/// Returns the file that kills all of a sandbox.
pub(super) fn cgroup_kill(sandbox: &Sandbox) -> Option<PathBuf> {
    let files = sandbox.paths().into_iter();
    let mut files = files.map(|path| path.join("cgroup.kill"));
    files.find(|file| file.exists())
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Not reaped yet, or no longer in the sandbox.
        let root = self.root.cast_signed();
        if self.sandbox.pids().contains(&root)
            && let Some(pidfd) = Pidfd::open(root)
        {
            let _ = pidfd.signal(Signal::SIGKILL);
        }
        let _ = self.parent.take().map(JoinHandle::join);
    }
}

/// Measures from the beginning of the kill until the tree is gone, in ms; and how long the method
/// itself says that it took, without the start of its program.
fn kill(tree: &Tree, method: Method) -> (f64, f64) {
    let root = tree.root;
    let tracker = (method == Method::LifemonTracked).then(TrackerOn::new);
    let start = Instant::now();
    let own_ms = match method {
        Method::Lifemon | Method::LifemonTracked => by_lifemon(root),
        Method::CgroupKill => {
            let file = cgroup_kill(&tree.sandbox).expect("asked before");
            std::fs::write(file, "1").expect("cgroup.kill");
            None
        }
        Method::Psutil => by_psutil(root, "60"),
        Method::PsutilWithoutWait => by_psutil(root, "0"),
        Method::Pgrep => {
            by_pgrep(&tree.sandbox, root);
            None
        }
    };
    tree.wait_gone();
    let ms = start.elapsed().as_secs_f64() * 1e3;
    drop(tracker);
    (ms, own_ms.unwrap_or(ms))
}

pub(super) fn by_lifemon(root: u32) -> Option<f64> {
    let output = lifemon()
        .args(["kill", "-o", "json", &root.to_string()])
        .output()
        .expect("lifemon");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    report["gone_ms"].as_f64()
}

pub(super) fn by_psutil(root: u32, timeout_s: &str) -> Option<f64> {
    let output = Command::new("python3")
        .args(["-c", PSUTIL, &root.to_string(), timeout_s])
        .output()
        .expect("python3");
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Collects the children of children, then kills all: only whoever is in the sandbox.
pub(super) fn by_pgrep(sandbox: &Sandbox, root: u32) {
    let begun = Instant::now();
    let mut found = vec![root];
    let mut next = 0;
    // A tree that grows as fast as it is walked has no end.
    while let Some(parent) = found
        .get(next)
        .copied()
        .filter(|_| begun.elapsed() < PGREP_MAX)
    {
        next += 1;
        let output = Command::new("pgrep")
            .args(["-P", &parent.to_string()])
            .output();
        let output = output.expect("pgrep");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    let inside = sandbox.pids();
    for pid in found.into_iter().map(u32::cast_signed) {
        if let (true, Some(pidfd)) = (inside.contains(&pid), Pidfd::open(pid)) {
            let _ = pidfd.signal(Signal::SIGKILL);
        }
    }
}

/// Lists what this host has.
pub(super) fn methods() -> Vec<Method> {
    let mut methods = vec![Method::Lifemon, Method::LifemonTracked];
    let mut offer = |method: Method, is_there: bool| {
        if is_there {
            methods.push(method);
        } else {
            println!(
                "kill: {} left out: this host does not have it",
                method.name()
            );
        }
    };
    let works = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        let output = command.args(words).output();
        output.is_ok_and(|output| output.status.success())
    };
    offer(Method::CgroupKill, cgroup_kill(&Sandbox::new()).is_some());
    let has_psutil = works("python3", &["-c", "import psutil"]);
    offer(Method::Psutil, has_psutil);
    offer(Method::PsutilWithoutWait, has_psutil);
    offer(Method::Pgrep, works("pgrep", &["--version"]));
    methods
}

pub(super) fn measure() {
    let methods = methods();
    for (count, rounds) in SIZES {
        let figures = || {
            methods
                .iter()
                .map(|_| Figures::default())
                .collect::<Vec<_>>()
        };
        let (mut whole, mut own) = (figures(), figures());
        for round in 0..rounds {
            for turn in 0..methods.len() {
                // Each method comes first, second and so on equally often.
                let index = (round + turn) % methods.len();
                if round > 0 && count >= SLOW_FROM && methods[index] == Method::Pgrep {
                    continue;
                }
                let (ms, own_ms) = kill(&Tree::new(count), methods[index]);
                whole[index].push(ms);
                own[index].push(own_ms);
            }
        }
        report(count, &methods, &whole, &own);
    }
}

fn report(count: u32, methods: &[Method], whole: &[Figures], own: &[Figures]) {
    for ((method, whole), own) in methods.iter().zip(whole).zip(own) {
        println!(
            "kill of {count} quiet processes, {}: {}; without the start of its program p50 {:.1}",
            method.name(),
            whole.line("ms"),
            own.at(0.5)
        );
    }
    let place = |wanted| methods.iter().position(|method| *method == wanted);
    let ours = [Method::Lifemon, Method::LifemonTracked];
    let theirs = [
        Method::CgroupKill,
        Method::Psutil,
        Method::PsutilWithoutWait,
        Method::Pgrep,
    ];
    for mine in ours {
        for other in theirs {
            let (Some(mine_at), Some(other_at)) = (place(mine), place(other)) else {
                continue;
            };
            println!(
                "kill of {count} quiet processes, {} / {}: {:.2} of the whole time, {:.2} without \
                the start (medians)",
                mine.name(),
                other.name(),
                whole[mine_at].at(0.5) / whole[other_at].at(0.5),
                own[mine_at].at(0.5) / own[other_at].at(0.5),
            );
        }
    }
}

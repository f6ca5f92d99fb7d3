//! What an agent costs while so many programs a second are started and end, beside programs that
//! print every fork, exec and exit.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::super::stats::Figures;
use super::running::{Agent, bpf_time, cpu};

const RATES: [u32; 2] = [1_000, 5_000];
const WINDOW: Duration = Duration::from_secs(5);
const ROUNDS: usize = 5;
/// Makers for each processor: one waits while another's program ends.
const MAKERS: usize = 4;
/// A maker starts what falls into one slot, then sleeps until the next.
const SLOT: Duration = Duration::from_millis(10);

/// The programs beside which the agent is measured, with their arguments.
const OTHERS: [(&str, &[&str]); 2] = [
    ("forkstat", &["-e", "fork,exec,exit"]),
    (
        "bpftrace",
        &[
            "-e",
            "tracepoint:sched:sched_process_fork,tracepoint:sched:sched_process_exec,\
             tracepoint:sched:sched_process_exit { printf(\"%s %d %s\\n\", probe, pid, comm); }",
        ],
    ),
];

/// Lets the kernel measure BPF programs.
struct Measuring {
    before: String,
}

impl Measuring {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn begin() -> io::Result<Self> {
        let before = fs::read_to_string(Self::SWITCH)?;
        fs::write(Self::SWITCH, "1")?;
        Ok(Self { before })
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        let _ = fs::write(Self::SWITCH, self.before.trim());
    }
}

/// What is measured: its name, its processes, and the figures of its own time and of its kernel
/// half, in % of one processor.
struct Subject {
    name: &'static str,
    pids: Vec<u32>,
    own: Figures,
    kernel: Figures,
}

impl Subject {
    fn new(name: &'static str, pids: Vec<u32>) -> Self {
        Self {
            name,
            pids,
            own: Figures::default(),
            kernel: Figures::default(),
        }
    }

    fn times(&self) -> [Duration; 2] {
        let sum = |of: fn(u32) -> Duration| self.pids.iter().map(|pid| of(*pid)).sum();
        [sum(cpu), sum(bpf_time)]
    }
}

/// Measures the agent, and what is installed of the others, at the same time under the same load.
pub(super) fn measure(agent: &Agent) {
    let Ok(_measuring) = Measuring::begin() else {
        println!("agent, under load: this kernel does not measure BPF programs");
        return;
    };
    for rate in RATES {
        let others = start_others();
        let mut subjects = vec![Subject::new("agent", agent.pids())];
        for (name, child) in &others {
            subjects.push(Subject::new(name, vec![child.id()]));
        }
        let mut made = Figures::default();
        for _ in 0..ROUNDS {
            let before: Vec<_> = subjects.iter().map(Subject::times).collect();
            let (count, elapsed) = load(rate);
            made.push(f64::from(count) / elapsed.as_secs_f64());
            for (subject, before) in subjects.iter_mut().zip(before) {
                let after = subject.times();
                let share = |index: usize| {
                    let used: Duration = after[index].saturating_sub(before[index]);
                    used.as_secs_f64() / elapsed.as_secs_f64() * 100.0
                };
                let (own, kernel) = (share(0), share(1));
                subject.own.push(own);
                subject.kernel.push(kernel);
            }
        }
        for (_, mut child) in others {
            let _ = child.kill();
            let _ = child.wait();
        }
        print(rate, &made, &subjects);
    }
}

fn print(rate: u32, made: &Figures, subjects: &[Subject]) {
    let made = made.at(0.5);
    for subject in subjects {
        let (own, kernel) = (subject.own.at(0.5), subject.kernel.at(0.5));
        println!(
            "{}, at {made:.0} fork+exec+exit a second ({rate} asked for): {own:.2} % of a \
             processor in its processes, {kernel:.2} % in its BPF programs, {:.2} us a program \
             (medians, n {ROUNDS} of {WINDOW:?})",
            subject.name,
            (own + kernel) * 1e4 / made,
        );
    }
    for (name, _) in OTHERS {
        if subjects.iter().all(|subject| subject.name != name) {
            println!("{name}: not installed");
        }
    }
}

/// Starts those of the others that are installed.
fn start_others() -> Vec<(&'static str, Child)> {
    let start = |(name, words): (&'static str, &[&str])| {
        let mut command = Command::new(name);
        command.args(words).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child.ok().map(|child| (name, child))
    };
    let started: Vec<_> = OTHERS.into_iter().filter_map(start).collect();
    if !started.is_empty() {
        // They compile and attach.
        thread::sleep(Duration::from_secs(5));
    }
    started
}

/// Starts programs at a rate for a while, on all processors; returns how many, and in what time.
fn load(rate: u32) -> (u32, Duration) {
    let makers = thread::available_parallelism().map_or(1, usize::from) * MAKERS;
    let makers = u32::try_from(makers).unwrap_or(1);
    let (ends, made) = (AtomicBool::new(false), AtomicU32::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..makers {
            scope.spawn(|| make(rate / makers, begun, &ends, &made));
        }
        thread::sleep(WINDOW);
        ends.store(true, Ordering::Relaxed);
    });
    (made.load(Ordering::Relaxed), begun.elapsed())
}

/// Starts programs one after the other, at this rate as far as the machine can.
fn make(rate: u32, begun: Instant, ends: &AtomicBool, made: &AtomicU32) {
    let mut own = 0;
    while !ends.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_secs_f64() * f64::from(rate);
        if f64::from(own) >= due {
            thread::sleep(SLOT);
            continue;
        }
        let status = Command::new("/bin/true").status();
        assert!(status.is_ok_and(|status| status.success()), "true");
        own += 1;
        made.fetch_add(1, Ordering::Relaxed);
    }
}

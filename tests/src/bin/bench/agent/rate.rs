//! What an agent costs while so many programs a second are started and end, beside programs that
//! print every fork, exec and exit, in turn with it.

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
/// The time for one of the others to start.
const START: Duration = Duration::from_secs(15);
/// The time after which one without BPF programs has started.
const SETTLE: Duration = Duration::from_secs(1);
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

/// What is measured: its name, and the figures of its windows: programs a second, and the time of
/// its processes and of its BPF programs in % of one processor.
struct Subject {
    name: &'static str,
    made: Figures,
    own: Figures,
    kernel: Figures,
}

impl Subject {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            made: Figures::default(),
            own: Figures::default(),
            kernel: Figures::default(),
        }
    }

    /// Measures one window of load.
    fn measure(&mut self, rate: u32, pids: &[u32]) {
        let times = || {
            let sum = |of: fn(u32) -> Duration| pids.iter().map(|pid| of(*pid)).sum();
            [sum(cpu), sum(bpf_time)]
        };
        let before: [Duration; 2] = times();
        let (count, elapsed) = load(rate);
        let after = times();
        let share = |index: usize| {
            let used = after[index].saturating_sub(before[index]);
            used.as_secs_f64() / elapsed.as_secs_f64() * 100.0
        };
        self.made.push(f64::from(count) / elapsed.as_secs_f64());
        self.own.push(share(0));
        self.kernel.push(share(1));
    }

    fn print(&self, rate: u32) {
        let made = self.made.at(0.5);
        let (own, kernel) = (self.own.at(0.5), self.kernel.at(0.5));
        println!(
            "{}, at {made:.0} fork+exec+exit a second ({rate} asked for): {own:.2} % of a \
             processor in its processes, {kernel:.2} % in its BPF programs, {:.2} us a program \
             (medians, n {} of {WINDOW:?})",
            self.name,
            (own + kernel) * 1e4 / made,
            self.made.count(),
        );
    }
}

/// Measures the agent and what is installed of the others, in turn, each alone in its windows. The
/// tracker, which belongs to the agent, is on all the time: its time is that of the agent alone.
pub(super) fn measure(agent: &Agent) {
    let Ok(_measuring) = Measuring::begin() else {
        println!("agent, under load: this kernel does not measure BPF programs");
        return;
    };
    for rate in RATES {
        let mut own = Subject::new("agent");
        let mut others = OTHERS.map(|(name, _)| Subject::new(name));
        for _ in 0..ROUNDS {
            own.measure(rate, &agent.pids());
            for (subject, (name, words)) in others.iter_mut().zip(OTHERS) {
                if let Some(other) = Other::start(name, words) {
                    subject.measure(rate, &[other.0.id()]);
                }
            }
        }
        own.print(rate);
        for other in &others {
            if other.made.count() == 0 {
                println!("{}: is not installed, or did not start", other.name);
            } else {
                other.print(rate);
            }
        }
    }
}

/// One of the others, which runs; killed on drop.
struct Other(Child);

impl Other {
    /// Starts one, and waits until it sees what happens; `None` where it is not installed or ends.
    fn start(name: &str, words: &[&str]) -> Option<Self> {
        // In a mount namespace of its own: bpftrace looks for tracepoints in a file system that is
        // not mounted everywhere. What is mounted here is gone with the program.
        let script = "command -v \"$1\" > /dev/null || exit 127; \
            [ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; \
            exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", name]);
        command.args(words).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut other = Self(command.spawn().ok()?);
        let begun = Instant::now();
        // Each program that is started here is something for it to notice.
        while begun.elapsed() < START {
            if !matches!(other.0.try_wait(), Ok(None)) {
                return None;
            }
            let _ = Command::new("/bin/true").status();
            thread::sleep(SLOT);
            let is_bpf = !bpf_time(other.0.id()).is_zero();
            // The other listens to the kernel's messages about processes: nothing shows since when.
            if is_bpf || (name == "forkstat" && begun.elapsed() > SETTLE) {
                return Some(other);
            }
        }
        None
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

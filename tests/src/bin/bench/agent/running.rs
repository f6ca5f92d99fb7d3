//! An agent that runs to be measured: its processes, their memory and their time on processors,
//! and requests to it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::super::lifemon;

/// A running agent; killed on drop.
pub(super) struct Agent {
    child: Child,
    directory: PathBuf,
}

/// Memory of a process in KiB.
pub(super) struct Memory {
    /// With what it shares with others.
    pub(super) resident: u64,
    /// With its part of what it shares.
    pub(super) proportional: u64,
    /// Without what it shares.
    pub(super) private: u64,
}

impl Agent {
    /// Starts one, and waits until it listens.
    pub(super) fn start(directory: &Path) -> Self {
        let child = lifemon()
            .args(["agent", "--runtime-dir"])
            .arg(directory)
            // As its unit starts it.
            .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let agent = Self {
            child,
            directory: directory.to_owned(),
        };
        while agent.try_connect().is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        agent
    }

    fn try_connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.directory.join("lifemon.sock"))
    }

    pub(super) fn connect(&self) -> UnixStream {
        self.try_connect().expect("it listens")
    }

    pub(super) fn core(&self) -> u32 {
        self.child.id()
    }

    /// Returns the pids of the core and of its fronts.
    pub(super) fn pids(&self) -> Vec<u32> {
        [self.core()]
            .into_iter()
            .chain(children(self.core()))
            .collect()
    }

    /// Returns the time on processors of all of them.
    pub(super) fn cpu(&self) -> Duration {
        self.pids().into_iter().map(cpu).sum()
    }

    /// Prints the memory of each process, and the sums.
    pub(super) fn print_memory(&self, when: &str) {
        let mut sum = [0; 3];
        let mut each = Vec::new();
        for pid in self.pids() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim();
            let memory = memory(pid);
            let [resident, proportional, private] =
                [memory.resident, memory.proportional, memory.private];
            sum = [sum[0] + resident, sum[1] + proportional, sum[2] + private];
            each.push(format!("{name} {resident}/{proportional}/{private}"));
        }
        println!(
            "agent, memory {when}, in KiB, resident/proportional/private: {}/{}/{} ({})",
            sum[0],
            sum[1],
            sum[2],
            each.join(", ")
        );
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the children of a process, whichever thread has started them.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let read = |path: PathBuf| fs::read_to_string(path.join("children")).unwrap_or_default();
    let lines: Vec<_> = threads.map(|thread| read(thread.path())).collect();
    let words = lines.iter().flat_map(|line| line.split_whitespace());
    words.filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the time on processors of a process: of all threads, also of those that have ended.
pub(super) fn cpu(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let ns = |path: PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let living: u64 = threads.filter_map(|thread| ns(thread.path())).sum();
    // In ticks, with those that have ended.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_nanos(living).max(Duration::from_millis(ticks * 10))
}

/// Returns the time in the kernel of the BPF programs that a process has open, while the kernel
/// measures.
pub(super) fn bpf_time(pid: u32) -> Duration {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let files = files.into_iter().flatten().flatten();
    let programs: BTreeMap<u64, u64> = files
        .filter_map(|file| {
            let text = fs::read_to_string(file.path()).ok()?;
            Some((field(&text, "prog_id:")?, field(&text, "run_time_ns:")?))
        })
        .collect();
    Duration::from_nanos(programs.values().sum())
}

pub(super) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |name| field(&text, name).unwrap_or_default();
    Memory {
        resident: of("Rss:"),
        proportional: of("Pss:"),
        private: of("Private_Clean:") + of("Private_Dirty:"),
    }
}

/// Returns the number behind a name, in a file of the kernel with one a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Asks, and reads the whole answer; returns its status line, head and body.
pub(super) fn ask(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> String {
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
        if length == 0 || is_whole(&answer) {
            return String::from_utf8_lossy(&answer).into_owned();
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|part| part == END) else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| answer.len() >= end + END.len() + length)
}

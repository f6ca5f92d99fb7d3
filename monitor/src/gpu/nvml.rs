//! GPU memory by process, as NVIDIA's management library (NVML) reports it.
//!
//! A call into it can hang in the driver for ever, where not even SIGKILL helps. So it is called in
//! a process of its own ([`serve`]), which is asked over a pipe and abandoned when it does not
//! answer in time. The library is loaded at run time; a host without it is a normal one.

#[cfg(feature = "gpu")]
mod library;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::{Kind, Memory};
use crate::proc::{self, OWN_PROGRAM};
use crate::process::is_same_process;
#[cfg(feature = "gpu")]
use library::Library;

/// The hidden command that runs [`serve`].
pub const COMMAND: &str = "nvml-server";

/// Longest time to wait for an answer: a driver that initialises many GPUs needs seconds.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// Its UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its product name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All its memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Memory in use, in bytes; the driver's own share included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// True if it is partitioned into instances.
    pub is_partitioned: bool,
    /// Processes that have memory on it.
    pub processes: Vec<GpuProcess>,
    /// The queries that failed, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// Memory of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct GpuProcess {
    /// Its pid in the initial pid namespace.
    pub pid: u32,
    /// The kind of use.
    pub kind: Kind,
    /// Size in bytes; absent when the driver does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The instance of a partitioned GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
}

impl Gpu {
    /// Returns the memory of each process.
    pub(super) fn memory(&self) -> impl Iterator<Item = (u32, Memory)> {
        let gpu = self
            .uuid
            .clone()
            .unwrap_or_else(|| format!("gpu {}", self.index));
        self.processes.iter().map(move |process| {
            let memory = Memory {
                gpu: gpu.clone(),
                kind: process.kind,
                bytes: process.bytes,
                gpu_instance: process.gpu_instance,
            };
            (process.pid, memory)
        })
    }

    #[cfg(test)]
    pub(super) fn of_one_process(pid: u32, bytes: u64) -> Self {
        Self {
            processes: vec![GpuProcess {
                pid,
                kind: Kind::Compute,
                bytes: Some(bytes),
                gpu_instance: None,
            }],
            ..Self::default()
        }
    }
}

/// The library, in a build without it.
#[cfg(not(feature = "gpu"))]
#[derive(Default)]
struct Library(());

#[cfg(not(feature = "gpu"))]
impl Library {
    /// Says that it cannot be asked.
    #[expect(
        clippy::unused_self,
        reason = "as the library that stands in its place"
    )]
    fn ask(&mut self) -> Answer {
        Answer::Absent("this lifemon was built without the feature `gpu`".to_owned())
    }
}

/// The outcome of a query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// Nobody was asked.
    #[default]
    NotAsked,
    /// There is no such library here, or no driver behind it: not an NVIDIA host.
    Absent(String),
    /// It failed.
    Failed(String),
    /// It did not answer for so many ms: it hangs in the driver.
    Hung(u64),
    /// The GPUs.
    Gpus(Vec<Gpu>),
}

impl Answer {
    /// Returns whether GPUs may be missing from the answer that are there.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Hung(_) => true,
            Self::Gpus(gpus) => gpus.iter().any(|gpu| !gpu.errors.is_empty()),
            Self::NotAsked | Self::Absent(_) => false,
        }
    }

    /// Returns pids that have memory on any GPU.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let gpus = match self {
            Self::Gpus(gpus) => gpus.as_slice(),
            _ => &[],
        };
        gpus.iter()
            .flat_map(|gpu| gpu.processes.iter().map(|process| process.pid))
    }
}

/// The processes that this one has started to ask the library. Nothing else proves which they are:
/// any user can start this program, under this name and with these arguments.
static HELPERS: Mutex<Vec<ProcessId>> = Mutex::new(Vec::new());

/// Takes note of a child that asks the library, and forgets those that are gone. One that hangs in
/// the driver is kept: it has its pid until it is reaped.
fn note_helper(child: &Child) {
    let mut helpers = HELPERS.lock().unwrap_or_else(PoisonError::into_inner);
    helpers.retain(|id| proc::owns_pid(*id));
    helpers.extend(child.id().and_then(proc::identify));
}

/// Returns whether this process has started that one to ask the library: it has the devices open
/// for its answer alone.
pub(super) fn is_own_helper(id: ProcessId) -> bool {
    let helpers = HELPERS.lock().unwrap_or_else(PoisonError::into_inner);
    helpers.iter().any(|helper| is_same_process(*helper, id))
}

/// The process that asks the library for us.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    running: Option<Running>,
    limit: Duration,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Makes a server of this `lifemon` binary; started when it is first asked.
    #[must_use]
    pub fn new(program: &Path, limit: Duration) -> Self {
        Self {
            program: program.to_path_buf(),
            running: None,
            limit,
        }
    }

    /// Makes a server of the running binary, which must be `lifemon`.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self::new(Path::new(OWN_PROGRAM), ANSWER_TIMEOUT)
    }

    /// Asks the library. After a hang the next question starts another process. Needs a tokio
    /// runtime with I/O and time.
    pub async fn ask(&mut self) -> Answer {
        match timeout(self.limit, self.exchange()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.abandon();
                Answer::Failed(error.to_string())
            }
            Err(_) => {
                self.abandon();
                Answer::Hung(u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }

    async fn exchange(&mut self) -> io::Result<Answer> {
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(start(&self.program)?),
        };
        running.stdin.write_all(b"ask\n").await?;
        let line = running.lines.next_line().await?;
        let line = line.ok_or_else(|| io::Error::other("the NVML server has died"))?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// Sends SIGKILL, which takes effect when the driver lets go. The runtime reaps it then.
    fn abandon(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.start_kill();
        }
    }
}

fn start(program: &Path) -> io::Result<Running> {
    let mut child = Command::new(program)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    // Nobody else reaps it, so the pid is its own. It opens no device before it is asked.
    note_helper(&child);
    let pipes = (child.stdin.take(), child.stdout.take());
    let (Some(stdin), Some(stdout)) = pipes else {
        return Err(io::Error::other("no pipes to the NVML server"));
    };
    Ok(Running {
        child,
        stdin,
        lines: BufReader::new(stdout).lines(),
    })
}

/// Answers each line of `questions` with one line, until they end: the process that asks the
/// library.
///
/// # Errors
/// When the answers cannot be written.
pub fn serve(questions: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    let mut library = Library::default();
    for question in questions.lines() {
        question?;
        let answer = library.ask();
        let line = serde_json::to_string(&answer).map_err(io::Error::other)?;
        writeln!(answers, "{line}")?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_the_pipe() {
        for answer in [
            Answer::NotAsked,
            Answer::Absent("x".to_owned()),
            Answer::Hung(5),
            Answer::Gpus(vec![Gpu::of_one_process(7, 9)]),
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
        }
    }

    #[test]
    fn a_failed_gpu_makes_the_answer_incomplete() {
        let mut gpu = Gpu::of_one_process(7, 9);
        assert!(!Answer::Gpus(vec![gpu.clone()]).is_incomplete());
        gpu.errors.push("lost".to_owned());
        assert!(Answer::Gpus(vec![gpu]).is_incomplete());
        assert!(Answer::Hung(1).is_incomplete());
        assert!(!Answer::Absent(String::new()).is_incomplete());
    }
}

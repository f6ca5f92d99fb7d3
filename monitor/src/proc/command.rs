//! Command lines and environments as `/proc` has them: bytes that the process can rewrite, of any
//! length and in no encoding. Read up to a limit, and only as a description: nothing is identified
//! or killed by them alone.

use std::cell::Cell;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};

use super::owns_pid;
use super::threads::files_of;

/// Bytes of a command line or an environment that are looked at: the kernel allows more, and a
/// pattern that people write fits in far less.
const BYTES_MAX: u64 = 256 * 1024;

/// Bytes of a command line that an answer has.
const SHOWN_MAX: u64 = 4 * 1024;

/// Bytes of all command lines of an answer together; then [`SHORT_MAX`] of each.
const ANSWER_MAX: u64 = 16 << 20;

/// Bytes of a command line that an answer has which is long already.
const SHORT_MAX: u64 = 128;

/// The variable that systemd gives to all processes of one unit: it tells that two belong
/// together, and not that one is of a job.
const UNIT_VARIABLE: &str = "INVOCATION_ID";

/// Variables that launchers give to all processes of one job, and to no other: documented in
/// `docs/events.md`.
const JOB_VARIABLES: [&str; 13] = [
    "LIFEMON_JOB",
    "RUNNER_TRACKING_ID",
    "CI_JOB_ID",
    "JENKINS_NODE_COOKIE",
    "BUILDKITE_JOB_ID",
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "RAY_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "OMPI_MCA_ess_base_jobid",
    "FLUX_JOB_ID",
    UNIT_VARIABLE,
];

/// The command line of a process, as the process itself reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "CommandJson", from = "CommandJson")]
#[non_exhaustive]
pub struct CommandLine {
    /// The arguments, separated by zero bytes; bounded.
    bytes: Vec<u8>,
    /// True if it was cut off.
    pub truncated: bool,
}

/// A command line as JSON.
#[derive(Serialize, Deserialize)]
struct CommandJson {
    arguments: Vec<String>,
    #[serde(default)]
    truncated: bool,
}

impl From<CommandLine> for CommandJson {
    fn from(command: CommandLine) -> Self {
        Self {
            arguments: command.to_strings(),
            truncated: command.truncated,
        }
    }
}

impl From<CommandJson> for CommandLine {
    fn from(json: CommandJson) -> Self {
        let words = json.arguments.iter();
        Self {
            bytes: words.flat_map(|word| word.bytes().chain([0])).collect(),
            truncated: json.truncated,
        }
    }
}

impl CommandLine {
    /// Returns the arguments.
    pub fn arguments(&self) -> impl Iterator<Item = &[u8]> {
        let ends_with_zero = self.bytes.last() == Some(&0);
        let whole = &self.bytes[..self.bytes.len() - usize::from(ends_with_zero)];
        whole
            .split(|byte| *byte == 0)
            .take(if whole.is_empty() { 0 } else { usize::MAX })
    }

    /// Returns the arguments as text, what is no UTF-8 replaced.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        let arguments = self.arguments();
        arguments
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect()
    }

    /// Returns all of it, where it is no UTF-8: the arguments, with a zero byte behind each.
    #[must_use]
    pub fn bytes_unless_text(&self) -> Option<&[u8]> {
        std::str::from_utf8(&self.bytes)
            .is_err()
            .then_some(&self.bytes)
    }

    /// Returns the arguments with a space between: what patterns are matched against.
    #[must_use]
    pub fn joined(&self) -> Vec<u8> {
        let arguments: Vec<&[u8]> = self.arguments().collect();
        arguments.join(&b' ')
    }

    /// Returns whether there is none: a zombie, or a process that has erased it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }
}

/// Returns the command line of exactly this process, all of it that is looked at; `None` when it is
/// not there any more.
#[must_use]
pub fn command_line(id: ProcessId) -> Option<CommandLine> {
    let command = read_command(id.pid, BYTES_MAX)?;
    owns_pid(id).then_some(command)
}

/// The command lines of one answer, which hostile processes cannot make very long: each is cut, and
/// cut shorter once all together have come to a limit.
#[derive(Debug)]
pub(crate) struct Commands {
    left: Cell<u64>,
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            left: Cell::new(ANSWER_MAX),
        }
    }
}

impl Commands {
    /// Returns the command line of whoever has this pid now. The caller checks who that is.
    pub(crate) fn of(&self, pid: u32) -> Option<CommandLine> {
        let left = self.left.get();
        let limit = if left > 0 { SHOWN_MAX } else { SHORT_MAX };
        let command = read_command(pid, limit)?;
        let taken = command.bytes.len() as u64;
        self.left.set(left.saturating_sub(taken));
        Some(command)
    }
}

/// Returns the command line of whoever has this pid now, as long as an answer has it. The caller
/// checks who that is.
pub(crate) fn command_line_of(pid: u32) -> Option<CommandLine> {
    read_command(pid, SHOWN_MAX)
}

fn read_command(pid: u32, limit: u64) -> Option<CommandLine> {
    let (mut bytes, truncated) = read_bounded(pid, "cmdline", limit)?;
    // Padding of programs that have set a title.
    while bytes.ends_with(&[0, 0]) {
        bytes.pop();
    }
    Some(CommandLine { bytes, truncated })
}

/// Returns the variables of this process that identify its job, as `NAME=VALUE`. Empty when there
/// is none, or when it may not be looked at.
#[must_use]
pub fn job_markers(id: ProcessId) -> Vec<String> {
    let Some((bytes, _)) = read_bounded(id.pid, "environ", BYTES_MAX) else {
        return Vec::new();
    };
    let is_marker = |variable: &&[u8]| {
        JOB_VARIABLES.iter().any(|name| {
            variable
                .strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&b'=') && rest.len() > 1)
        })
    };
    let markers = bytes.split(|byte| *byte == 0).filter(is_marker);
    let markers = markers
        .map(|marker| String::from_utf8_lossy(marker).into_owned())
        .collect();
    if owns_pid(id) { markers } else { Vec::new() }
}

/// Returns the value of a variable in the environment that this process was started with.
#[must_use]
pub(crate) fn variable(id: ProcessId, name: &str) -> Option<String> {
    let (bytes, _) = read_bounded(id.pid, "environ", BYTES_MAX)?;
    let mut variables = bytes.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })?;
    owns_pid(id).then(|| String::from_utf8_lossy(value).into_owned())
}

/// Returns whether a marker is of a job that somebody started, and not of a unit of systemd.
#[must_use]
pub fn is_of_job(marker: &str) -> bool {
    !marker.starts_with(UNIT_VARIABLE)
}

/// Reads a file of `/proc/<pid>`; also returns whether there is more of it than is looked at.
fn read_bounded(pid: u32, name: &str, limit: u64) -> Option<(Vec<u8>, bool)> {
    let read = |directory: PathBuf| {
        let file = File::open(directory.join(name)).ok()?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let mut bytes = read(format!("/proc/{pid}").into())?;
    if bytes.is_empty() {
        // Its leader thread has exited, or it has none.
        bytes = read(files_of(pid)).unwrap_or_default();
    }
    let truncated = bytes.len() as u64 > limit;
    bytes.truncate(limit as usize);
    Some((bytes, truncated))
}

#[cfg(test)]
mod tests {
    use super::super::identify;
    use super::*;

    fn line(bytes: &[u8]) -> CommandLine {
        CommandLine {
            bytes: bytes.to_vec(),
            truncated: false,
        }
    }

    #[test]
    fn arguments_are_what_lies_between_zeroes() {
        let command = line(b"python3\0-c\0a\nb\0\0");
        assert_eq!(command.to_strings(), ["python3", "-c", "a\nb", ""]);
        assert_eq!(line(b"title without a zero").to_strings().len(), 1);
        assert_eq!(line(b"").arguments().count(), 0);
        assert!(line(b"\0").is_empty());
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(line(b"a\xff\0").to_strings(), ["a\u{fffd}"]);
        assert_eq!(line(b"a\xff\0b\0").joined(), b"a\xff b");
    }

    #[test]
    fn variables_of_a_job_are_found_and_others_are_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env_clear()
            .envs([
                ("SLURM_JOB_ID", "77"),
                ("SLURM_JOB_IDS", "8"),
                ("HOME", "/"),
            ])
            .env("RAY_JOB_ID", "")
            .spawn()
            .unwrap();
        // Between fork and exec it still has our own environment.
        let id = identify(child.id()).unwrap();
        let found = (0..1_000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            Some(job_markers(id)).filter(|markers| !markers.is_empty())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap(), ["SLURM_JOB_ID=77"]);
        assert!(is_of_job("CI_JOB_ID=7") && !is_of_job("INVOCATION_ID=7"));
    }

    #[test]
    fn an_answer_has_a_bounded_part_of_all_command_lines() {
        // The shell goes on to wait: further words mean nothing to it.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .args(std::iter::repeat_n("x".repeat(1_000), 20))
            .spawn()
            .unwrap();
        let commands = Commands::default();
        let first = (0..1_000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            commands.of(child.id()).filter(|command| command.truncated)
        });
        commands.left.set(1);
        let long = commands.of(child.id()).unwrap();
        let short = commands.of(child.id()).unwrap();
        let id = identify(child.id()).unwrap();
        let whole = command_line(id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(first.unwrap().bytes.len() as u64, SHOWN_MAX);
        assert_eq!(long.bytes.len() as u64, SHOWN_MAX);
        assert_eq!(short.bytes.len() as u64, SHORT_MAX);
        assert!(short.truncated && whole.bytes.len() > 20_000 && !whole.truncated);
    }

    #[test]
    fn this_process_has_a_command_line() {
        let own = identify(std::process::id()).unwrap();
        assert!(!command_line(own).unwrap().is_empty());
        let other = ProcessId::new(own.pid, own.start_ns + 5_000_000_000);
        assert_eq!(command_line(other), None);
    }
}

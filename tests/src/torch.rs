//! A real GPU: a server with `PyTorch` whose workers hold memory of it, and what `nvidia-smi` says
//! of them. For the tests in `gpu/`, which need such a machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::{Actor, DEADLINE, Process, Sandbox, wait_until};

/// What the workers hold; a CUDA context has some hundred MiB more.
pub const BYTES: u64 = 1 << 30;

const SERVER: &str = include_str!("../gpu/python/torch_server.py");

/// Turns a test that is skipped for want of a GPU into one that has failed: set by
/// `cargo xtask test --gpu`, which would otherwise pass without a test.
const MUST_HAVE: &str = "LIFEMON_TEST_GPU";

/// Returns whether this host has a GPU of NVIDIA that `PyTorch` can use, and says so where it has
/// not.
///
/// # Panics
/// When it has none, and `LIFEMON_TEST_GPU` says that it must.
#[must_use]
pub fn has_gpu() -> bool {
    static HAS: OnceLock<Result<(), String>> = OnceLock::new();
    let has = HAS.get_or_init(|| {
        let script = "import torch; assert torch.cuda.is_available(), 'no GPU for PyTorch'";
        let programs: [(&str, &[&str]); 2] =
            [("nvidia-smi", &["-L"]), ("python3", &["-c", script])];
        programs.iter().try_for_each(|(program, words)| {
            let output = Command::new(program).args(*words).output();
            let output = output.map_err(|error| format!("{program}: {error}"))?;
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.trim().lines().last().unwrap_or_default();
            let failed = || format!("{program}: {why}");
            output.status.success().then_some(()).ok_or_else(failed)
        })
    });
    if let Err(why) = has {
        let may_be_skipped = std::env::var_os(MUST_HAVE).is_none();
        assert!(may_be_skipped, "no GPU of NVIDIA with PyTorch: {why}");
        println!("skipped: no GPU of NVIDIA with PyTorch: {why}");
    }
    has.is_ok()
}

/// A server whose workers hold memory of a GPU.
#[derive(Debug)]
pub struct TorchServer(pub Actor);

impl TorchServer {
    /// Starts one without workers.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::start_below(sandbox, &["python3"])
    }

    /// Starts one below another program: `["unshare", "--pid", "--fork", "python3"]`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start_below(sandbox: &Sandbox, program: &[&str]) -> Self {
        let (first, words) = program.split_first().expect("a program");
        let words = words.iter().map(|&word| word.to_owned());
        let file = file(sandbox).display().to_string();
        let words: Vec<_> = words.chain([file]).collect();
        Self(Actor::spawn(Path::new(first), sandbox, &words))
    }

    /// Makes a worker in this way, and returns it when it is ready.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn worker(&mut self, command: &str) -> Process {
        self.0.command(command);
        let workers = self.0.children("worker");
        *workers.last().expect("the worker that was made")
    }

    /// Makes a worker that holds so much.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn hold(&mut self, bytes: u64) -> Process {
        self.worker(&format!("hold {bytes}"))
    }

    /// Tells a worker to exit by itself.
    ///
    /// # Panics
    /// When the server is dead.
    #[track_caller]
    pub fn end(&mut self, worker: Process) {
        self.0.command(&format!("end {}", worker.pid));
    }
}

/// Writes the program of the server into the sandbox, once.
fn file(sandbox: &Sandbox) -> std::path::PathBuf {
    let file = sandbox.directory().join("torch_server.py");
    fs::write(&file, SERVER).expect("a file in the sandbox");
    file
}

/// Returns what `nvidia-smi` says of processes that compute: MiB by pid, `None` where it does not
/// say.
///
/// # Panics
/// When it fails.
#[must_use]
#[track_caller]
pub fn compute_apps() -> BTreeMap<i32, Option<u64>> {
    let text = smi("--query-compute-apps=pid,used_memory");
    let line = |line: &str| {
        let (pid, mib) = line.split_once(", ")?;
        Some((pid.parse().ok()?, mib.parse().ok()))
    };
    let known = text
        .lines()
        .map(|text| line(text).unwrap_or_else(|| panic!("{text}")));
    known.collect()
}

/// Returns the memory of all GPUs that is in use, in MiB.
///
/// # Panics
/// When `nvidia-smi` fails.
#[must_use]
#[track_caller]
pub fn used_mib() -> u64 {
    let text = smi("--query-gpu=memory.used");
    let numbers = text.lines().map(str::parse::<u64>);
    numbers.map(|number| number.expect("a number of MiB")).sum()
}

/// Waits until no more memory is in use than before, but for what the driver keeps for itself.
///
/// # Panics
/// When it stays in use.
#[track_caller]
pub fn wait_until_free(before_mib: u64) {
    const KEPT_MIB: u64 = 64;
    wait_until("the memory of the GPU", DEADLINE, || {
        used_mib() <= before_mib + KEPT_MIB
    });
}

#[track_caller]
fn smi(query: &str) -> String {
    let mut command = Command::new("nvidia-smi");
    command.args([query, "--format=csv,noheader,nounits"]);
    let output = command.output().expect("nvidia-smi");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

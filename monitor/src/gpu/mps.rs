//! Clients of CUDA MPS: processes that share one context of a GPU through a server. A client that
//! is killed with work under way can take down the others
//! (<https://docs.nvidia.com/deploy/mps/index.html>), so a kill should know them.
//!
//! A client finds the control daemon by a directory in its environment, in which the daemon
//! listens. Nothing is opened here: the directory may be on a file system that hangs.

use lifemon_ebpf::ProcessId;

use crate::proc;

/// The variable that names the directory of the control daemon.
const VARIABLE: &str = "CUDA_MPS_PIPE_DIRECTORY";

/// That directory where the variable is not set.
const DEFAULT_DIRECTORY: &str = "/tmp/nvidia-mps";

/// Returns whether a living process is a client: the daemon of its directory listens, and it names
/// that directory, or has a device of NVIDIA open.
#[must_use]
pub fn is_client(id: ProcessId) -> bool {
    let named = proc::variable(id, VARIABLE).filter(|directory| !directory.is_empty());
    let directory = named.as_deref().unwrap_or(DEFAULT_DIRECTORY);
    let control = format!("{}/control", directory.trim_end_matches('/'));
    if !proc::listens_on(id.pid, &control) {
        return false;
    }
    let is_device = |file: &proc::OpenFile| file.target.starts_with("/dev/nvidiactl");
    named.is_some() || proc::open_files(id.pid, is_device).is_ok_and(|devices| !devices.is_empty())
}

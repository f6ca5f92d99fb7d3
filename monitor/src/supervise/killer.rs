//! The tree kill with eBPF, in a child process of its own: this process is the root of the tree,
//! and nobody kills its own tree. The child reports through a pipe.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, fork, getppid, pipe2};
use serde_json::{Value, json};

use super::message::Order;
use super::signals::check;
use crate::kernel::{LoadOptions, Tracker};
use crate::kill::{KillOptions, go_first, kill_tree};
use crate::report;

/// How long the killer goes on killing after the grace.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a report at most: far more than the processes of any host need.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// A killer at work.
#[derive(Debug)]
pub(super) struct Killer {
    /// Its pid: an unreaped child of this process.
    pub(super) pid: u32,
    pipe: File,
    text: Vec<u8>,
}

impl Killer {
    /// Starts killing everything below this process, which must have one thread only.
    pub(super) fn start(order: Order) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let root = std::process::id();
        // SAFETY: this process has one thread, so the child is a whole copy of it.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(write);
                Ok(Self {
                    pid: child.as_raw().cast_unsigned(),
                    pipe: read.into(),
                    text: Vec::new(),
                })
            }
            ForkResult::Child => {
                drop(read);
                let write = leave_open(write);
                set_name(c"lifemon-killer");
                let report = match kill_below(root, order) {
                    Ok(report) => report,
                    Err(error) => json!({ "error": format!("{error:#}") }).to_string(),
                };
                let _ = File::from(write).write_all(report.as_bytes());
                // SAFETY: ends the process; the parent's destructors are not ours to run.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// The pipe, to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads on, when there is something to read; the report once it is whole.
    pub(super) fn read(&mut self) -> Option<Result<Value, String>> {
        let mut bytes = [0; 8 << 10];
        match self.pipe.read(&mut bytes) {
            Ok(0) => Some(self.parse()),
            Ok(count) => {
                self.text.extend(&bytes[..count]);
                let is_long = self.text.len() as u64 > REPORT_BYTES_MAX;
                is_long.then(|| Err("the killer's report does not end".to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => Some(Err(error.to_string())),
        }
    }

    fn parse(&self) -> Result<Value, String> {
        let report: Value = serde_json::from_slice(&self.text)
            .map_err(|_| "the killer ended without a report".to_owned())?;
        match report.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(report),
        }
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        // SAFETY: an unreaped child of ours: its pid is nobody else's.
        let _ = check(unsafe { libc::kill(self.pid.cast_signed(), libc::SIGKILL) }.into());
    }
}

/// Closes every descriptor but this one and the first three: that the process which this is a copy of is
/// dead is told by the end of its channels.
fn leave_open(fd: OwnedFd) -> OwnedFd {
    const ONLY: i32 = libc::STDERR_FILENO + 1;
    let fd = fd.into_raw_fd();
    // SAFETY: no memory is passed. Whatever had this number belongs to the process that was copied: this
    // copy does not use it, and ends without destructors.
    let is_moved = fd == ONLY || unsafe { libc::dup3(fd, ONLY, libc::O_CLOEXEC) } == ONLY;
    if is_moved {
        let rest = ONLY.cast_unsigned() + 1;
        // SAFETY: no memory is passed; the same holds. A kernel without it leaves them open.
        unsafe { libc::syscall(libc::SYS_close_range, rest, libc::c_uint::MAX, 0) };
    }
    // SAFETY: it is open, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(if is_moved { ONLY } else { fd }) }
}

/// Kills what is below `root`, the parent of this process; the report as JSON.
fn kill_below(root: u32, order: Order) -> anyhow::Result<String> {
    go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let root = snapshot.live(root).map(|(id, _)| *id);
    let root = root.filter(|root| getppid().as_raw().cast_unsigned() == root.pid);
    let Some(root) = root else {
        anyhow::bail!("the process that asked for it is gone");
    };
    let options = KillOptions {
        first_signal: order
            .signal
            .and_then(|number| Signal::try_from(number).ok()),
        grace: order.grace,
        timeout: TIMEOUT,
        protected: vec![root],
        dry_run: false,
        // It is an ancestor of this process, and protected.
        force: true,
        release: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(kill_tree(tracker, root, &options))?;
    Ok(report::kill::json(&report, false)?)
}

/// What `ps` shows for this process.
pub(super) fn set_name(name: &std::ffi::CStr) {
    // SAFETY: the name ends with a zero and lives until the call returns.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

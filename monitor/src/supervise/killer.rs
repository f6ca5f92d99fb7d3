//! The tree kill with eBPF, in a child process of its own: this process is the root of the tree,
//! and nobody kills its own tree. The child reports through a pipe.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::parent_id;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use serde_json::{Value, json};

use super::message::Order;
use crate::kernel::{LoadOptions, Tracker};
use crate::kill::{KillOptions, kill_tree};
use crate::report;
use crate::sys::child;
use crate::sys::descriptor::close_all_but;
use crate::sys::priority::go_first;
use crate::sys::signals;

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
        if let Some(pid) = child::fork()? {
            drop(write);
            return Ok(Self {
                pid,
                pipe: read.into(),
                text: Vec::new(),
            });
        }
        drop(read);
        let write = close_all_but(write);
        child::set_name(c"lifemon-killer");
        let report = match kill_below(root, order) {
            Ok(report) => report,
            Err(error) => json!({ "error": format!("{error:#}") }).to_string(),
        };
        let _ = File::from(write).write_all(report.as_bytes());
        child::exit(0)
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
        // An unreaped child of ours: its pid is nobody else's.
        let _ = signals::send_to_child(self.pid, libc::SIGKILL, false);
    }
}

/// Kills what is below `root`, the parent of this process; the report as JSON.
fn kill_below(root: u32, order: Order) -> anyhow::Result<String> {
    go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let root = snapshot.live(root).map(|(id, _)| *id);
    let root = root.filter(|root| parent_id() == root.pid);
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

//! The tree kill with eBPF, in a child process of its own: this process is the root of the tree,
//! and nobody kills its own tree. The child reports through a pipe.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::parent_id;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::exact::{KillError, kill_blocking};
use super::options::KillOptions;
use super::outcome::{Order, Outcome};
use crate::loss::Loss;
use crate::process::Signal;
use crate::sys::child;
use crate::sys::descriptor::close_all_but;
use crate::sys::poll::wait_for;
use crate::sys::priority::go_first;
use crate::sys::signals;

/// The time that the killer goes on killing after the grace.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a report at most: far more than the processes of any host need.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// What goes through the pipe first, before the first signal: from then on somebody may be dead
/// whom only the report names. No message begins like this.
const BEGUN: u8 = b'\n';

/// The killer's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The outcome for the processes.
    pub(super) outcome: Outcome,
    /// The losses that make it incomplete.
    pub(super) losses: Vec<Loss>,
}

/// The message that goes through the pipe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Killed(Report),
    Failed(String),
}

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
    pub(super) fn start(order: &Order, kept: Vec<crate::ProcessId>) -> io::Result<Self> {
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
        close_all_but([&write]);
        let mut pipe = File::from(write);
        child::set_name(c"lifemon-killer");
        // A parent that is gone needs no report.
        let begin = || drop(pipe.write_all(&[BEGUN]));
        let message = match kill_below(root, order, kept, begin) {
            Ok(report) => Message::Killed(report),
            Err(error) => Message::Failed(error.to_string()),
        };
        let _ = serde_json::to_vec(&message).map(|bytes| pipe.write_all(&bytes));
        child::exit(0)
    }

    /// Returns the pipe, to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads on, when there is something to read; returns the report once it is whole.
    pub(super) fn read(&mut self) -> Option<Result<Report, String>> {
        let mut bytes = [0; 8 << 10];
        match self.pipe.read(&mut bytes) {
            Ok(0) => Some(parse(&self.text)),
            Ok(count) => {
                self.text.extend(&bytes[..count]);
                let is_long = self.text.len() as u64 > REPORT_BYTES_MAX;
                is_long.then(|| Err("the killer's report does not end".to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => Some(Err(error.to_string())),
        }
    }

    /// Returns whether it may have sent a signal by now.
    pub(super) fn has_begun(&mut self) -> bool {
        if self.text.is_empty()
            && let Ok([true]) = wait_for([Some(self.pipe.as_fd())], Some(Duration::ZERO))
        {
            // Whatever else there is to read, its end included, the next read finds.
            let mut first = [0];
            if let Ok(1) = self.pipe.read(&mut first) {
                self.text.extend(first);
            }
        }
        self.text.first() == Some(&BEGUN)
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        // An unreaped child of ours: its pid is nobody else's.
        let _ = signals::send_to_child(self.pid, libc::SIGKILL, false);
    }
}

fn parse(text: &[u8]) -> Result<Report, String> {
    match serde_json::from_slice(text) {
        Ok(Message::Killed(report)) => Ok(report),
        Ok(Message::Failed(why)) => Err(why),
        Err(_) => Err("the killer ended without a report".to_owned()),
    }
}

/// Kills what is below `root`, the parent of this process; `begin` is called before the first
/// signal, when all that takes long before is done.
fn kill_below(
    root: u32,
    order: &Order,
    kept: Vec<crate::ProcessId>,
    begin: impl FnOnce(),
) -> Result<Report, KillError> {
    go_first();
    let is_parent = |root: crate::ProcessId| parent_id() == root.pid;
    let report = kill_blocking(root, is_parent, &[], |root| {
        begin();
        KillOptions {
            first_signal: order.signal.and_then(Signal::new),
            grace: order.grace,
            timeout: TIMEOUT,
            protected: vec![root],
            spared: kept,
            // It is an ancestor of this process, and protected.
            force: true,
            ..KillOptions::default()
        }
    })?;
    // The root is a subreaper from its beginning: nothing has ever left its tree.
    let losses = report.losses.into_iter();
    let losses = losses.filter(|loss| !loss.is_missing_history());
    Ok(Report {
        outcome: report.outcome,
        losses: losses.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_is_no_report() {
        let report = Report {
            outcome: Outcome::default(),
            losses: vec![Loss::NoHistory, Loss::RingFull],
        };
        let bytes = |message: &Message| serde_json::to_vec(message).unwrap();
        let killed = bytes(&Message::Killed(report.clone()));
        assert_eq!(parse(&killed), Ok(report.clone()));
        let failed = Message::Failed("no privileges".to_owned());
        assert_eq!(parse(&bytes(&failed)), Err("no privileges".to_owned()));
        assert!(parse(b"").is_err() && parse(&[BEGUN]).is_err());
        let begun = [vec![BEGUN], killed].concat();
        assert_eq!(parse(&begun), Ok(report));
    }

    #[test]
    fn who_has_begun_says_so_before_the_report_and_who_has_failed_has_not() {
        let failed = serde_json::to_vec(&Message::Failed("no".to_owned())).unwrap();
        for (text, expected) in [(&b""[..], false), (&[BEGUN], true), (&failed, false)] {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let mut killer = Killer {
                pid: 0,
                pipe: read.into(),
                text: Vec::new(),
            };
            assert!(!killer.has_begun());
            let mut write = File::from(write);
            write.write_all(text).unwrap();
            assert_eq!(killer.has_begun(), expected);
            write.write_all(&failed).unwrap();
            drop(write);
            assert_eq!(killer.has_begun(), expected);
            while killer.read().is_none() {}
            let whole = [text, &failed].concat();
            assert_eq!(killer.text, whole);
        }
    }
}

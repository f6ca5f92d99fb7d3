//! The guardian's process, as its parent has it. Whatever fails here, nothing of it is left.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use crate::supervise::nursery;
use crate::sys::child::BeforeExec;

/// Killed and reaped when it is dropped.
#[derive(Debug)]
pub(super) struct Guardian {
    pid: u32,
    /// Until it was waited for: then its pid may be anybody's.
    child: Option<Child>,
}

impl Guardian {
    /// Executes this program, with its channel and the workers' ends open.
    pub(super) fn start(
        program: &Path,
        channel: &UnixStream,
        ends: &[UnixStream],
    ) -> io::Result<Self> {
        let mut passed: Vec<_> = ends.iter().map(UnixStream::as_raw_fd).collect();
        passed.push(channel.as_raw_fd());
        let (name, number) = nursery::words(channel.as_raw_fd());
        let mut command = Command::new(program);
        command.arg0(name).arg(number);
        let prepared = BeforeExec {
            keeps: passed,
            ..BeforeExec::default()
        };
        prepared.set(&mut command);
        let child = command.spawn()?;
        Ok(Self {
            pid: child.id(),
            child: Some(child),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // One that is dead already needs it no more.
            let _ = child.kill();
        }
    }

    pub(super) fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A server that ignores SIGCHLD has it reaped by the kernel.
            let _ = child.wait();
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

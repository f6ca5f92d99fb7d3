//! The guardian's process, as its parent handles it: a fork of this process where that has one
//! thread, otherwise this program executed anew. Whatever fails here, no process is left behind.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use super::executed::words;
use super::message::{Channel, Spec};
use super::serve::serve_command;
use super::spawn::Place;
use crate::sys::child::{self, BeforeExec};

/// An executed guardian. Killed and reaped when it is dropped.
#[derive(Debug)]
pub(crate) struct Guardian {
    pid: u32,
    /// Set until it was waited for: from then on its pid may be another process's.
    child: Option<Child>,
}

impl Guardian {
    /// Executes this program, with its channel and the workers' ends open.
    pub(crate) fn start(
        program: &Path,
        channel: &UnixStream,
        ends: &[UnixStream],
    ) -> io::Result<Self> {
        let mut passed: Vec<_> = ends.iter().map(UnixStream::as_raw_fd).collect();
        passed.push(channel.as_raw_fd());
        let (name, number) = words(channel.as_raw_fd());
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

    /// Returns its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // It fails only for one that is dead already.
            let _ = child.kill();
        }
    }

    /// Waits until it is dead, and reaps it.
    pub(crate) fn wait(&mut self) {
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

/// Forks a guardian for one command; returns its pid and the channel to it. For a process with one
/// thread and all signals blocked. If one of the two is killed while the other is stopped, that
/// goes on.
pub(super) fn fork_guardian(spec: &Spec, place: Place) -> io::Result<(u32, Channel)> {
    let (ours, its) = UnixStream::pair()?;
    if let Some(pid) = child::fork_companion()? {
        return Ok((pid, Channel::new(ours)));
    }
    drop(ours);
    let result = serve_command(Channel::new(its), spec, place);
    if let Err(error) = &result {
        let _ = writeln!(io::stderr(), "lifemon guardian: {error}");
    }
    child::exit(i32::from(result.is_err()))
}

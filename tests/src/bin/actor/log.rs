//! The identities of all processes that a load makes, written to a file by each of them before it
//! may exit, and a count of the same by their creators: two records that must agree.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;

use lifemon_tests::proc;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, getpid, pipe2, read, write};

use crate::talk::fail;

pub(crate) struct Log(File);

impl Log {
    pub(crate) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self(file.unwrap_or_else(|error| fail(&format!("{}: {error}", path.display()))))
    }

    /// Appends `PID START_TICKS CREATOR_PID` of the calling process in one write.
    pub(crate) fn enter(&self, creator: Pid) {
        let pid = getpid().as_raw();
        let ticks = proc::stat(pid).map_or(0, |stat| stat.start_ticks);
        if write(&self.0, format!("{pid} {ticks} {creator}\n").as_bytes()).is_err() {
            fail("cannot write the log");
        }
    }
}

/// Creators write a byte for each process they made. The end of the pipe also says that every
/// one of them, orphans included, has exited.
pub(crate) struct Tally {
    reader: OwnedFd,
    writer: Option<OwnedFd>,
    counted: usize,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let ends = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC);
        let (reader, writer) = ends.unwrap_or_else(|errno| fail(&format!("pipe: {errno}")));
        Self {
            reader,
            writer: Some(writer),
            counted: 0,
        }
    }

    /// Enters, in any of the processes, that it has created one.
    pub(crate) fn add(&self) {
        let writer = self
            .writer
            .as_ref()
            .unwrap_or_else(|| fail("the tally is closed"));
        if write(writer, b"+") != Ok(1) {
            fail("the tally is full");
        }
    }

    /// Empties the pipe; true when nobody can add to it any more.
    pub(crate) fn drain(&mut self) -> bool {
        let mut bytes = [0; 1024];
        while let Ok(length) = read(&self.reader, &mut bytes) {
            if length == 0 {
                return true;
            }
            self.counted += length;
        }
        false
    }

    /// Closes the end of the actor itself, which adds no more.
    pub(crate) fn close(&mut self) {
        self.writer = None;
    }

    pub(crate) fn counted(&self) -> usize {
        self.counted
    }
}

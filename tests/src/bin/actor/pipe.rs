//! A pipe of numbers between the processes of one behaviour: pids upwards, commands downwards.
//! Every process keeps both ends, so a reader whose writers died waits for its own deadline.

use std::os::fd::OwnedFd;

use nix::unistd::{Pid, pipe, read, write};

use crate::talk::fail;

pub(crate) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let (reader, writer) = pipe().unwrap_or_else(|errno| fail(&format!("pipe: {errno}")));
        Self { reader, writer }
    }

    /// The same one again, in another program.
    pub(crate) fn from_ends(reader: OwnedFd, writer: OwnedFd) -> Self {
        Self { reader, writer }
    }

    /// Both ends, which are left open by exec.
    pub(crate) fn ends(&self) -> [&OwnedFd; 2] {
        [&self.reader, &self.writer]
    }

    /// Writes four bytes, which the kernel writes whole.
    pub(crate) fn send(&self, number: i32) {
        if write(&self.writer, &number.to_ne_bytes()) != Ok(4) {
            fail("pipe: short write");
        }
    }

    pub(crate) fn receive(&self) -> i32 {
        let mut bytes = [0; 4];
        match read(&self.reader, &mut bytes) {
            Ok(4) => i32::from_ne_bytes(bytes),
            other => fail(&format!("pipe: {other:?}")),
        }
    }

    pub(crate) fn receive_pid(&self) -> Pid {
        Pid::from_raw(self.receive())
    }
}

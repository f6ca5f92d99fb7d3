//! The closer: the program that lets no condemned process back to user code. It is attached by its
//! descriptor, which takes no more than loading it took; aya would open it again by its number, for
//! which the kernel wants `CAP_SYS_ADMIN`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;

use super::hooks::{TRACE_FS, is_preemptible, with_trace_fs};
use super::{Error, sys};
use crate::sys::text;

/// Where it stands. On x86-64 a new process passes the end of a system call before its first
/// instruction. On arm64 it does not: there the beginnings are closed as well, because the kernel
/// creates no process for a caller who is about to be killed.
const CLOSED: &[&CStr] = if cfg!(target_arch = "x86_64") {
    &[c"sys_exit"]
} else {
    &[c"sys_exit", c"sys_enter"]
};

/// The closer of a tracker. Detached when it is dropped, and by the kernel when this process ends.
#[derive(Debug)]
pub struct Closer {
    program: OwnedFd,
    links: Vec<OwnedFd>,
}

impl Closer {
    /// Returns whether the kernel may want `CAP_SYS_ADMIN` of whoever attaches it: where it stands
    /// at the tracing files, which may not be mounted, and which `kernel.perf_event_paranoid`
    /// guards.
    #[must_use]
    pub fn may_take_admin() -> bool {
        is_preemptible()
    }

    /// Returns the closer that this loaded program is, not attached yet.
    pub(super) const fn of(program: OwnedFd) -> Self {
        let links = Vec::new();
        Self { program, links }
    }

    /// Attaches it. Takes a millisecond, but can take seconds on an overloaded host: call it
    /// beside the killing, not before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self) -> Result<(), Error> {
        let refused = |error: io::Error| Error::load("closer", &error);
        let program = self.program.as_fd();
        let info = sys::program_info(program).map_err(refused)?;
        let is_raw = info.type_ == BPF_PROG_TYPE_RAW_TRACEPOINT as u32;
        for point in CLOSED {
            let link = if is_raw {
                sys::attach_to_raw_tracepoint(program, point)
            } else {
                with_trace_fs(|| sys::attach_to_tracepoint(program, number(point)?))?
            };
            self.links.push(link.map_err(refused)?);
        }
        Ok(())
    }
}

/// Returns the number that the tracing files give the tracepoint of all system calls.
fn number(point: &CStr) -> io::Result<u64> {
    let name = point.to_string_lossy();
    let below = format!("events/raw_syscalls/{name}/id");
    let read = |root: &str| text::read(Path::new(root).join(&below));
    let number = read(TRACE_FS[0]).or_else(|_| read(TRACE_FS[1]))?;
    number.trim().parse().map_err(io::Error::other)
}

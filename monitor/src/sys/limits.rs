//! Limits of processes.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::{self, Pid, Rlimit};

/// Raises the limit of open descriptors as far as this process may: each process that is followed,
/// or that is to be hit, costs one.
pub(crate) fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Sets the soft limit of file locks of the process that has this pid now; `None` for no limit. The
/// hard one is none.
pub(crate) fn limit_locks(pid: u32, soft: Option<u64>) -> io::Result<()> {
    let limit = Rlimit {
        current: soft,
        maximum: None,
    };
    let pid = Pid::from_raw(pid.cast_signed());
    Ok(process::prlimit(pid, process::Resource::Locks, limit).map(drop)?)
}

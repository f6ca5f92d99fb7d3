//! Giving up privileges for good, in a process that has one thread.

use std::io;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::capabilities::{drop_capabilities, empty_bounding_set};
use crate::sys::text;

/// Becomes this user and group, without other groups and without any capability, now and after
/// whatever program is executed, and without any more threads or children. Nobody but root can look
/// into this process from here on.
///
/// # Errors
/// When a step fails, or the kernel does not confirm the result.
pub(crate) fn give_up(uid: u32, gid: u32) -> io::Result<()> {
    empty_bounding_set();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    drop_capabilities()?;
    // It needs neither threads nor children.
    setrlimit(Resource::RLIMIT_NPROC, 0, 0)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    confirm(uid.as_raw())
}

/// Checks by the kernel's own word that nothing is left.
fn confirm(uid: u32) -> io::Result<()> {
    let status = text::read("/proc/self/status")?;
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name).map(str::trim))
    };
    let is_nothing = |name| field(name).is_some_and(|set| set.bytes().all(|digit| digit == b'0'));
    let has_none = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"]
        .into_iter()
        .all(is_nothing);
    let uid = uid.to_string();
    let is_user = field("Uid:").is_some_and(|ids| ids.split_whitespace().all(|id| id == uid));
    if has_none && is_user {
        Ok(())
    } else {
        Err(io::Error::other("the kernel has left privileges"))
    }
}

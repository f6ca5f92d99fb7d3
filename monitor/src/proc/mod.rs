//! Reads what only `/proc` knows: the present parent, the kind of a pid that has no record,
//! identities of processes that a tracker has not seen. Everything read here may be old a moment
//! later. Nothing outside this module and the kernel's side reads `/proc`.
//!
//! `liveness` defines *live*, *dead* and *gone*; `command`, `placement`, `files`, `family` and
//! `status` read one kind of file each; `threads` finds them where the leader thread has exited,
//! `shared` compares what processes have.

mod command;
mod family;
mod files;
mod held;
mod liveness;
mod locks;
mod mounts;
mod placement;
mod shared;
mod sockets;
#[cfg(feature = "agent")]
mod standing;
mod status;
mod threads;
mod turn;
mod zombies;

pub use command::{CommandLine, command_line, is_of_job, job_markers};
pub(crate) use files::open_files_until;
pub use files::{OpenFile, open_files};
pub use liveness::{has_successor, is_gone, is_live, owns_pid};
pub use locks::{Lock, find_paths, locks};
pub use placement::{Placement, placement};
pub use shared::Shared;
pub use sockets::{Socket, listening};
pub use status::{name, wait_channel};
pub use zombies::{Zombie, zombie, zombies};

pub(crate) use command::{Commands, command_line_of, variable};
pub(crate) use family::{children, children_by_parent, children_of, own_threads, pids};
pub(crate) use files::{
    descriptor_device, descriptor_info, device_majors, device_number, input_device, with_pidfd,
};
pub(crate) use held::Held;
pub(crate) use placement::placement_of;
pub(crate) use shared::Belongings;
pub(crate) use sockets::{listens_on, sockets_on};
#[cfg(feature = "agent")]
pub(crate) use standing::{
    ContainerGroup, Namespaces, container_group, credentials, makers_of_user_namespaces,
    namespaces, owner, pid_of_pidfd,
};
pub(crate) use status::{frozen_cgroup, ignores_hangup, lock_limits, switches, tracer};
pub(crate) use turn::{has_many_pids, pid_turn};

use std::fs;
use std::path::Path;

use lifemon_ebpf::ProcessId;

const PF_KTHREAD: u64 = 0x0020_0000;

/// This program, to start it once more. Also after the file was replaced.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// The fields of `/proc/<pid>/stat` that lifemon uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Pid of the parent as this pid namespace sees it.
    pub parent: u32,
    /// Process group, by its leader's pid.
    pub group: u32,
    /// Session, by its leader's pid.
    pub session: u32,
    /// Device number of the controlling terminal; 0 without one.
    pub terminal: i32,
    /// `PF_*` flags of the task.
    pub flags: u64,
    /// Page faults of the children that it has waited for: they change when it reaps one.
    pub children_faults: u64,
    /// Start, in clock ticks since boot.
    pub start_ticks: u64,
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Threads that have not ended, or have not been reaped.
    pub threads: u32,
    /// Time on processors of all its threads, in clock ticks.
    pub cpu_ticks: u64,
    /// Pages of its memory that are resident; 0 where its leader thread has exited.
    pub resident_pages: u64,
}

impl Stat {
    /// Returns the process that this is of, with its start as exact as `/proc` gives it (a clock
    /// tick).
    #[must_use]
    pub fn identity(&self, pid: u32) -> ProcessId {
        ProcessId::new(pid, self.start_ticks * tick_ns())
    }

    /// Returns the time on processors of all its threads, in ms.
    #[must_use]
    pub fn cpu_ms(&self) -> u64 {
        self.cpu_ticks.saturating_mul(tick_ns() / 1_000_000)
    }

    /// Returns whether its leader thread has exited while others run: files of the process are
    /// empty then, and those of its threads are not.
    pub(crate) const fn has_no_leader(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads > 1
    }
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such task.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses a stat line. The name may hold anything, parentheses and newlines too: the fields begin
/// after the last `)`.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end_of_name = line.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(line.get(end_of_name + 1..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields are numbered from 1 with the pid; state is 3, parent 4, group 5, session 6, flags 9,
    // cminflt 11, utime 14, stime 15, num_threads 20, starttime 22, rss 24. Leaders outside the pid
    // namespace of this `/proc` read as 0, or as -1 where there is no group.
    let group = fields.next()?.parse().unwrap_or(0);
    let session = fields.next()?.parse().unwrap_or(0);
    let terminal = fields.next()?.parse().ok()?;
    let flags = fields.nth(9 - 7 - 1)?.parse().ok()?;
    let children_faults = fields.nth(11 - 9 - 1)?.parse().ok()?;
    let user_ticks: u64 = fields.nth(14 - 11 - 1)?.parse().ok()?;
    let kernel_ticks: u64 = fields.next()?.parse().ok()?;
    let threads = fields.nth(20 - 15 - 1)?.parse().ok()?;
    let start_ticks = fields.nth(22 - 20 - 1)?.parse().ok()?;
    let resident_pages = fields.nth(24 - 22 - 1)?.parse().ok()?;
    Some(Stat {
        parent,
        group,
        session,
        terminal,
        flags,
        children_faults,
        start_ticks,
        state,
        threads,
        cpu_ticks: user_ticks.saturating_add(kernel_ticks),
        resident_pages,
    })
}

/// Returns whether `/proc` is that of this process's pid namespace: its numbers are those of system
/// calls.
#[must_use]
pub fn is_ours() -> bool {
    let own = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&own))
}

/// Returns why `/proc` may not show every process of this pid namespace; `None` where it does.
#[must_use]
pub fn trouble() -> Option<&'static str> {
    if !is_ours() {
        let is_there = Path::new("/proc/self").exists();
        return Some(if is_there {
            "/proc is not that of this pid namespace"
        } else {
            "/proc is not mounted"
        });
    }
    // Process 1 exists as long as any process does.
    let hides = stat(1).is_none();
    hides.then_some("/proc hides the processes of other users")
}

/// Returns the inode of the pid namespace of the process that has this pid now: `pid:[4026531836]`.
#[must_use]
pub fn pid_namespace(pid: u32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    let inode = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

/// Returns the length of a clock tick, in ns.
fn tick_ns() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    1_000_000_000 / u64::try_from(per_second.max(1)).unwrap_or(100)
}

/// Returns the process that has this pid now, with its start as exact as `/proc` gives it (a clock
/// tick).
#[must_use]
pub fn identify(pid: u32) -> Option<ProcessId> {
    Some(stat(pid)?.identity(pid))
}

/// Returns the present parent of this very process.
#[must_use]
pub fn parent(id: ProcessId) -> Option<u32> {
    let stat = stat(id.pid)?;
    stat.is_of(id).then_some(stat.parent)
}

/// The kind of a pid that has no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing has this pid.
    Nothing,
    /// A thread of another process.
    ThreadOf(u32),
    /// A thread of the kernel.
    KernelThread,
    /// Dead, not reaped yet.
    Zombie,
    /// A process.
    Process,
}

/// Returns what `pid` is.
#[must_use]
pub fn kind(pid: u32) -> Kind {
    let Some(stat) = stat(pid) else {
        return Kind::Nothing;
    };
    if stat.flags & PF_KTHREAD != 0 {
        return Kind::KernelThread;
    }
    match status::field(pid, "Tgid").and_then(|group| group.parse().ok()) {
        Some(group) if group != pid => Kind::ThreadOf(group),
        _ if stat.is_gone() => Kind::Zombie,
        _ => Kind::Process,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "77 (a) b\n) S 42 77 76 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 70 8";

    #[test]
    fn a_name_may_hold_anything() {
        let stat = parse_stat(LINE.as_bytes()).unwrap();
        assert_eq!(
            (stat.parent, stat.start_ticks, stat.state),
            (42, 123_456, 'S')
        );
        assert_eq!((stat.group, stat.session, stat.terminal), (77, 76, 0));
        assert_eq!(
            (stat.flags, stat.children_faults, stat.threads),
            (4_194_304, 2, 1)
        );
        assert_eq!((stat.cpu_ticks, stat.resident_pages), (5 + 6, 70));
        assert_eq!(trouble(), None);
    }

    #[test]
    fn a_cut_line_is_nothing() {
        for length in 0..LINE.len() - 4 {
            let _ = parse_stat(&LINE.as_bytes()[..length]);
        }
        assert_eq!(parse_stat(b"77 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_a_process_and_live() {
        let own = std::process::id();
        assert_eq!(kind(own), Kind::Process);
        assert!(is_live(identify(own).unwrap()));
    }

    #[test]
    fn a_pid_of_nobody_is_nothing() {
        assert_eq!(kind(u32::MAX / 4), Kind::Nothing);
    }
}

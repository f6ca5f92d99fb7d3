//! What only `/proc` knows: the present parent, the kind of a pid that has no record, identities of
//! processes that a tracker has not seen. Everything read here may be gone a moment later.

mod command;
mod files;
mod placement;

pub use command::{CommandLine, command_line, job_markers};
pub use files::{OpenFile, open_files};
pub use placement::{Placement, placement};

pub(crate) use command::command_line_of;
pub(crate) use placement::placement_of;

use std::fs;
use std::path::Path;

use lifemon_ebpf::ProcessId;

const PF_KTHREAD: u64 = 0x0020_0000;

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
}

impl Stat {
    /// The process that this is of, with its start as exact as `/proc` gives it (a clock tick).
    #[must_use]
    pub fn identity(&self, pid: u32) -> ProcessId {
        ProcessId::new(pid, self.start_ticks * tick_ns())
    }

    /// Whether the process that this task leads is dead. A leader can be a zombie while other threads of
    /// its process run; and one without any thread has just handed its pid to a thread that executes a
    /// program, or is gone at the next look.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads == 1
    }
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such task.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the name (`comm`) of whoever has this pid now. It is for that process to choose.
#[must_use]
pub fn name(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}

/// Parses a stat line. The name may hold anything, parentheses and newlines too: the fields begin
/// after the last `)`.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end_of_name = line.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(line.get(end_of_name + 1..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields are numbered from 1 with the pid; state is 3, parent 4, flags 9, cminflt 11, starttime 22.
    // Leaders outside the pid namespace of this `/proc` read as 0, or as -1 where there is no group.
    let group = fields.next()?.parse().unwrap_or(0);
    let session = fields.next()?.parse().unwrap_or(0);
    let terminal = fields.next()?.parse().ok()?;
    let flags = fields.nth(9 - 7 - 1)?.parse().ok()?;
    let children_faults = fields.nth(11 - 9 - 1)?.parse().ok()?;
    let threads = fields.nth(20 - 11 - 1)?.parse().ok()?;
    let start_ticks = fields.nth(22 - 20 - 1)?.parse().ok()?;
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
    })
}

/// Whether `/proc` is that of this process's pid namespace: its numbers are those of system calls.
#[must_use]
pub fn is_ours() -> bool {
    let own = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&own))
}

/// Why `/proc` may not show every process of this pid namespace; `None` where it does.
#[must_use]
pub fn trouble() -> Option<&'static str> {
    if !is_ours() {
        return Some("/proc is not that of this pid namespace");
    }
    // The first process exists as long as anybody does.
    let hides = stat(1).is_none();
    hides.then_some("/proc hides the processes of other users")
}

/// Length of a clock tick, in ns.
fn tick_ns() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    1_000_000_000 / u64::try_from(per_second.max(1)).unwrap_or(100)
}

/// The process that has this pid now, with its start as exact as `/proc` gives it (a clock tick).
#[must_use]
pub fn identify(pid: u32) -> Option<ProcessId> {
    Some(stat(pid)?.identity(pid))
}

/// Whether this very process is there, a zombie not counted; exact to a clock tick.
#[must_use]
pub fn is_alive(id: ProcessId) -> bool {
    stat(id.pid).is_some_and(|stat| stat.start_ticks == id.start_ns / tick_ns() && !stat.is_dead())
}

/// Whether this very process has ended for certain: gone, or dead with every thread.
#[must_use]
pub fn is_over(id: ProcessId) -> bool {
    match stat(id.pid) {
        None => is_nobody(id.pid),
        Some(stat) if stat.start_ticks != id.start_ns / tick_ns() => true,
        Some(stat) => stat.is_dead(),
    }
}

/// Whether nothing has this pid. A missing file alone does not say so: `/proc` can be mounted so that it
/// hides the processes of others.
fn is_nobody(pid: u32) -> bool {
    use nix::errno::Errno;
    use nix::sys::signal::kill;
    use nix::unistd::Pid;
    kill(Pid::from_raw(pid.cast_signed()), None) == Err(Errno::ESRCH)
}

/// Whether the task that has this pid now is this process, zombies included.
#[must_use]
pub fn is_same(id: ProcessId) -> bool {
    stat(id.pid).is_some_and(|stat| stat.start_ticks == id.start_ns / tick_ns())
}

/// The present parent of this very process.
#[must_use]
pub fn parent(id: ProcessId) -> Option<u32> {
    let stat = stat(id.pid)?;
    (stat.start_ticks == id.start_ns / tick_ns()).then_some(stat.parent)
}

/// Where in the kernel the task with this pid waits; `None` when it does not, or that may not be known.
#[must_use]
pub fn wait_channel(pid: u32) -> Option<String> {
    let channel = fs::read_to_string(format!("/proc/{pid}/wchan")).ok()?;
    (!channel.is_empty() && channel != "0").then_some(channel)
}

/// What a pid is that has no record.
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

/// What `pid` is.
#[must_use]
pub fn kind(pid: u32) -> Kind {
    let Some(stat) = stat(pid) else {
        return Kind::Nothing;
    };
    if stat.flags & PF_KTHREAD != 0 {
        return Kind::KernelThread;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    match group.and_then(|group| group.trim().parse().ok()) {
        Some(group) if group != pid => Kind::ThreadOf(group),
        _ if stat.is_dead() => Kind::Zombie,
        _ => Kind::Process,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "77 (a) b\n) S 42 77 77 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";

    #[test]
    fn a_name_may_hold_anything() {
        let stat = parse_stat(LINE.as_bytes()).unwrap();
        assert_eq!(
            (stat.parent, stat.start_ticks, stat.state),
            (42, 123_456, 'S')
        );
        assert_eq!((stat.group, stat.session, stat.terminal), (77, 77, 0));
        assert_eq!(
            (stat.flags, stat.children_faults, stat.threads),
            (4_194_304, 2, 1)
        );
        assert_eq!(trouble(), None);
    }

    #[test]
    fn a_cut_line_is_nothing() {
        for length in 0..LINE.len() - 10 {
            let _ = parse_stat(&LINE.as_bytes()[..length]);
        }
        assert_eq!(parse_stat(b"77 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_a_process_and_alive() {
        let own = std::process::id();
        assert_eq!(kind(own), Kind::Process);
        let id = identify(own).unwrap();
        assert!(is_alive(id));
        assert!(!is_alive(ProcessId::new(own, id.start_ns + 1_000_000_000)));
    }

    #[test]
    fn what_lives_is_not_over_and_what_is_gone_or_replaced_is() {
        let own = identify(std::process::id()).unwrap();
        assert!(!is_over(own));
        assert!(is_over(ProcessId::new(
            own.pid,
            own.start_ns + 1_000_000_000
        )));
        assert!(is_over(ProcessId::new(u32::MAX / 4, 1)));
        assert!(!is_nobody(1), "also where it may not be signalled");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = identify(child.id()).unwrap();
        while stat(id.pid).is_some_and(|stat| stat.state != 'Z') {
            std::thread::yield_now();
        }
        assert!(is_over(id), "a zombie without other threads");
        child.wait().unwrap();
        assert!(is_over(id));
    }

    #[test]
    fn a_pid_of_nobody_is_nothing() {
        assert_eq!(kind(u32::MAX / 4), Kind::Nothing);
    }
}

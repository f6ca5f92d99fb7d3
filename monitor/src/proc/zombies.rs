//! Zombies: processes that are gone and that their parent has not reaped. Their `stat` still says
//! how they ended, and the scheduler's file when they last ran, which was to die.

use lifemon_ebpf::ProcessId;

use super::{pids, stat, status};
use crate::process::Name;
use crate::sys::text;

/// Zombies that are looked at: a parent that never reaps fills the table of pids.
const ZOMBIES_MAX: usize = 10_000;

/// A zombie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zombie {
    /// Its identity, exact to a clock tick.
    pub id: ProcessId,
    /// Its `comm`.
    pub name: Option<Name>,
    /// Real user id.
    pub uid: Option<u32>,
    /// The pid of its parent, which does not reap it.
    pub parent: u32,
    /// Its status as `wait(2)` would give it; `None` where this user may not know it.
    pub status: Option<u32>,
    /// Nanoseconds on the clock of the scheduler that have passed since it last ran; `None` where
    /// the kernel does not say.
    pub dead_ns: Option<u64>,
}

/// Returns all zombies of this pid namespace, as far as they are looked at.
#[must_use]
pub fn zombies() -> Vec<Zombie> {
    let now_ns = last_run_ns("self");
    let pids = pids().unwrap_or_default().into_iter();
    pids.filter_map(|pid| look(pid, now_ns))
        .take(ZOMBIES_MAX)
        .collect()
}

/// Returns the zombie that has this pid.
#[must_use]
pub fn zombie(pid: u32) -> Option<Zombie> {
    look(pid, last_run_ns("self"))
}

fn look(pid: u32, now_ns: Option<u64>) -> Option<Zombie> {
    let stat = stat(pid).filter(super::Stat::is_gone)?;
    let last_ns = last_run_ns(&pid.to_string());
    let zombie = Zombie {
        id: stat.identity(pid),
        name: status::name(pid),
        uid: status::field(pid, "Uid")
            .and_then(|uids| uids.split_whitespace().next()?.parse().ok()),
        parent: stat.parent,
        status: exit_code(pid),
        dead_ns: last_ns.and_then(|last| Some(now_ns?.saturating_sub(last))),
    };
    super::stat(pid)
        .is_some_and(|again| again.is_gone() && again.start_ticks == stat.start_ticks)
        .then_some(zombie)
}

/// Returns the last field of `stat`, which whoever may not trace the process reads as 0.
fn exit_code(pid: u32) -> Option<u32> {
    let text = text::read(format!("/proc/{pid}/stat")).ok()?;
    let code = text.rsplit_once(')')?.1.split_ascii_whitespace().last()?;
    let code = code.parse().ok()?;
    (code != 0 || nix::unistd::geteuid().is_root()).then_some(code)
}

/// Returns when a process last ran, on the scheduler's clock: `se.exec_start : 1234.567890`, in ms.
fn last_run_ns(pid: &str) -> Option<u64> {
    let text = text::read(format!("/proc/{pid}/sched")).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("se.exec_start"))?;
    let (ms, parts) = line.rsplit(':').next()?.trim().split_once('.')?;
    let ms: u64 = ms.parse().ok()?;
    let ns: u64 = parts.get(..6)?.parse().ok()?;
    ms.checked_mul(1_000_000)?.checked_add(ns)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_child_that_is_not_reaped_is_a_zombie_of_this_process() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let found = (0..1_000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            zombie(child.id())
        });
        let found = found.unwrap();
        assert_eq!(found.parent, std::process::id());
        assert!(zombies().iter().any(|zombie| zombie.id == found.id));
        assert!(found.status.is_none_or(|status| status == 3 << 8));
        assert!(found.dead_ns.is_none_or(|ns| ns < 10_000_000_000));
        child.wait().unwrap();
        assert_eq!(zombie(child.id()), None);
    }
}

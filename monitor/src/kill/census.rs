//! Lists what is below this process, for somebody to see.
//!
//! A walk from parents to children can miss a process that is orphaned meanwhile: its new parent
//! has been visited already. A signal does not care, because the next walk meets it; a list does.
//! So here every process of the host is looked at, and of each its parent. Two facts settle it:
//!
//! - Who is below a subreaper stays below it as long as it lives, whoever its parent is. So a link
//!   to a parent proves the descent, however old the link is, if the parent's descent is proven.
//! - A parent is older than its child, also one that has adopted it. So a parent that is not in the
//!   table, or is younger there than its child, has died since, and the child's link is read again.
//!
//! A look lists every process that is alive for its whole duration. A second look that sees the
//! same proves that the tree stood still meanwhile: the same alive, who still are at its end, and
//! the same dead. Whoever was born and not seen was born of one that was seen alive and has died
//! since, so there is a difference.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::walk::Descendant;
use crate::loss::{Incomplete, Loss};
use crate::proc;

/// The time that a tree may go on changing before what was seen last is the answer.
const SETTLE: Duration = Duration::from_millis(500);

/// Pause between two looks that differ.
const PAUSE: Duration = Duration::from_millis(1);

/// Links that are followed for one process: more than a line of ancestors can have.
const LINKS_MAX: usize = 100_000;

/// The processes that were seen.
#[derive(Debug)]
pub(crate) struct Census {
    /// Everything below this process that was alive at the end of the last look.
    pub(crate) members: Vec<Descendant>,
    /// The reason why a process may be missing.
    pub(crate) doubt: Option<Incomplete>,
}

/// Whatever comes and goes below changes one of these, or adds one.
#[derive(Debug, PartialEq, Eq)]
struct State {
    is_gone: bool,
    /// Page faults of those whom it has reaped.
    reaped_faults: u64,
}

/// The processes that one look has seen.
#[derive(Debug, Default)]
struct Look {
    members: Vec<Descendant>,
    /// Everybody below, by pid and start. Our own dead are not reaped meanwhile.
    seen: BTreeMap<(u32, u64), State>,
    /// True if a process was gone before a descriptor was opened.
    is_torn: bool,
}

/// Returns whether the process that has this pid now is below `root`, which lives: as its parents
/// are now, so for a subreaper all that descends from it is.
pub(crate) fn is_below(root: u32, pid: u32) -> bool {
    Links::unread().lead_to(root, pid, None)
}

/// Looks until the tree below this process stands still; returns what was seen. `except` and what
/// is below it are left out.
pub(crate) fn take(except: Option<u32>) -> Census {
    let begun = Instant::now();
    let mut before: Option<Look> = None;
    loop {
        let look = match look(except) {
            Ok(look) => look,
            Err(error) => {
                return Census {
                    members: before.map(|look| look.members).unwrap_or_default(),
                    doubt: Some(Incomplete::because(
                        Loss::ProcHidden,
                        format!("processes cannot be listed: {error}"),
                    )),
                };
            }
        };
        let is_same = before.as_ref().is_some_and(|it| it.seen == look.seen);
        let is_settled = is_same && !look.is_torn && !look.members.iter().any(Descendant::is_gone);
        if is_settled || (before.is_some() && begun.elapsed() > SETTLE) {
            let hidden = proc::trouble().map(|why| Incomplete::because(Loss::ProcHidden, why));
            let moved = "processes came and went while they were listed";
            let moved = Incomplete::because(Loss::Unsettled, moved);
            return Census {
                members: look.members,
                doubt: hidden.or_else(|| (!is_settled).then_some(moved)),
            };
        }
        if before.is_some() {
            sleep(PAUSE);
        }
        before = Some(look);
    }
}

/// Looks once. Fails when a directory cannot be read, or no descriptor is left.
fn look(except: Option<u32>) -> io::Result<Look> {
    let own = std::process::id();
    let mut links = Links::read()?;
    let pids: Vec<u32> = links.table.keys().copied().collect();
    let mut look = Look::default();
    for pid in pids {
        if !links.lead_to(own, pid, except) {
            continue;
        }
        let Some(link) = links.get(pid) else {
            look.is_torn = true;
            continue;
        };
        let (member, now) = match Descendant::open(pid) {
            Ok(opened) => opened,
            Err(error) if is_nobody(&error) => {
                look.is_torn = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        // The start after the descriptor was opened: it is no heir's.
        if now.start_ticks != link.start {
            look.is_torn = true;
            continue;
        }
        let state = State {
            is_gone: member.is_gone(),
            reaped_faults: link.reaped_faults,
        };
        if !state.is_gone {
            look.members.push(member);
        }
        look.seen.insert((pid, link.start), state);
    }
    Ok(look)
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL))
}

/// A process and its parent, as read at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    parent: u32,
    /// In clock ticks since boot.
    start: u64,
    /// Page faults of those whom it has reaped.
    reaped_faults: u64,
}

/// The links of a host, read again where they turn out to be old.
struct Links<Read> {
    table: HashMap<u32, Link>,
    /// The link of a pid now.
    read: Read,
}

impl Links<fn(u32) -> Option<Link>> {
    /// Returns links that are read when they are asked for.
    fn unread() -> Self {
        Self {
            table: HashMap::new(),
            read: |pid| {
                let stat = proc::stat(pid)?;
                Some(Link {
                    parent: stat.parent,
                    start: stat.start_ticks,
                    reaped_faults: stat.children_faults,
                })
            },
        }
    }

    fn read() -> io::Result<Self> {
        let mut links = Self::unread();
        for pid in proc::pids()? {
            links.renew(pid);
        }
        Ok(links)
    }
}

impl<Read: Fn(u32) -> Option<Link>> Links<Read> {
    fn renew(&mut self, pid: u32) -> Option<Link> {
        let link = (self.read)(pid);
        match link {
            Some(link) => self.table.insert(pid, link),
            None => self.table.remove(&pid),
        };
        link
    }

    fn get(&mut self, pid: u32) -> Option<Link> {
        match self.table.get(&pid) {
            Some(link) => Some(*link),
            None => self.renew(pid),
        }
    }

    /// Returns whether the links lead from `pid` up to `root`, and not by way of `except`.
    fn lead_to(&mut self, root: u32, pid: u32, except: Option<u32>) -> bool {
        if pid == root {
            return false;
        }
        let mut at = pid;
        let Some(mut link) = self.get(at) else {
            return false;
        };
        for _ in 0..LINKS_MAX {
            if Some(at) == except {
                return false;
            }
            if link.parent == root {
                return true;
            }
            if link.parent == 0 {
                return false;
            }
            let parent = self.get(link.parent);
            if let Some(parent) = parent.filter(|parent| parent.start <= link.start) {
                (at, link) = (link.parent, parent);
                continue;
            }
            // That parent is dead and reaped, so this one has another parent by now, if it lives. A
            // parent that stays is hidden from us, and that is in doubt anyway.
            let gone = link.parent;
            match self.renew(at) {
                Some(new) if new.start == link.start && new.parent != gone => link = new,
                _ => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn link(parent: u32, start: u64) -> Link {
        Link {
            parent,
            start,
            reaped_faults: 0,
        }
    }

    /// Returns a host that is described as it was when it was read, and as it is now.
    fn leads(then: &[(u32, Link)], now: &[(u32, Link)], pid: u32, except: Option<u32>) -> bool {
        let now: HashMap<_, _> = now.iter().copied().collect();
        let mut links = Links {
            table: then.iter().copied().collect(),
            read: |pid| now.get(&pid).copied(),
        };
        links.lead_to(10, pid, except)
    }

    #[test]
    fn who_is_below_is_found_and_who_is_beside_is_not() {
        let host = [
            (1, link(0, 0)),
            (10, link(1, 5)),
            (11, link(10, 6)),
            (12, link(11, 7)),
            (13, link(1, 7)),
        ];
        let below = |pid| leads(&host, &host, pid, None);
        assert!(below(11) && below(12));
        assert!(!below(1) && !below(10) && !below(13) && !below(99));
        assert!(!leads(&host, &host, 12, Some(11)) && !leads(&host, &host, 11, Some(11)));
    }

    #[test]
    fn who_was_orphaned_since_is_found_by_its_new_parent() {
        let then = [(1, link(0, 0)), (10, link(1, 5)), (12, link(11, 7))];
        let now = [(1, link(0, 0)), (10, link(1, 5)), (12, link(10, 7))];
        assert!(leads(&then, &now, 12, None));
    }

    #[test]
    fn the_heir_of_a_parents_pid_is_no_parent() {
        let then = [
            (1, link(0, 0)),
            (10, link(1, 5)),
            (11, link(1, 9)),
            (12, link(11, 7)),
            (13, link(14, 8)),
            (14, link(10, 20)),
        ];
        let mut now = then;
        now[3].1.parent = 10;
        now[4].1.parent = 1;
        assert!(leads(&then, &now, 12, None), "its parent was below");
        assert!(!leads(&then, &now, 13, None), "the heir is below, not it");
    }

    #[test]
    fn orphans_of_this_process_are_all_in_it() {
        let script = "sleep 60 & exec sleep 60";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let below = loop {
            let census = take(None);
            let is_below = |member: &&Descendant| proc::parent(member.id) == Some(shell.id());
            if let Some(below) = census.members.iter().find(is_below) {
                assert!(
                    census
                        .members
                        .iter()
                        .any(|member| member.id.pid == shell.id())
                );
                break below.signal(libc::SIGKILL);
            }
            assert!(begun.elapsed() < Duration::from_secs(10));
        };
        assert!(below.unwrap());
        assert!(
            take(Some(shell.id()))
                .members
                .iter()
                .all(|member| member.id.pid != shell.id())
        );
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}

//! One process, explained: what it is, who created it and why that one is gone, how it was left,
//! what it and everything below it hold, who waits for it, and what a kill would do. It collects
//! what the other modules know; it decides nothing.

use std::collections::{BTreeSet, HashSet};

use lifemon_ebpf::ProcessId;

use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{Answer, Server};
use crate::gpu::{self, Survey};
use crate::kernel::clock;
use crate::kernel::snapshot::Snapshot;
use crate::kill::Guard;
use crate::orphan::{self, Known, Orphan, Subtree};
use crate::proc::{self, Commands, Lock, Socket, Zombie};
use crate::process::{Died, Process, Who};
use crate::tree::{self, Live};

/// Creators that are named.
const LINEAGE_MAX: usize = 64;

/// Processes below it whose files are looked at for sockets and locks.
const LOOKED_AT_MAX: usize = 4_096;

/// Descriptors of processes (pidfds) are looked for in this many processes.
const WAITERS_LOOKED_AT_MAX: usize = 65_536;

/// A creator.
#[derive(Debug, Clone)]
pub struct Ancestor {
    /// The process.
    pub who: Who,
    /// Time and kind of its death; `None` while it lives.
    pub died: Option<Died>,
}

/// What some processes hold beside memory.
#[derive(Debug, Clone, Default)]
pub struct Holds {
    /// Sockets on which they can be reached.
    pub sockets: BTreeSet<Socket>,
    /// Locks on files.
    pub locks: Vec<Lock>,
}

/// Who waits for the end of a process.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// The process that waits.
    pub who: Who,
    /// How: `parent`, `tracer`, `pidfd`.
    pub how: &'static str,
    /// True if it is in a call that waits at this moment.
    pub waits_now: bool,
}

/// What is known of one process.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The process.
    pub process: Process,
    /// Time and kind of its death; `None` while it lives.
    pub died: Option<Died>,
    /// The facts that `/proc` adds while it lives.
    pub live: Option<Live>,
    /// Where in the kernel it waits.
    pub wait_channel: Option<String>,
    /// Set where it is dead and nobody has reaped it.
    pub zombie: Option<Zombie>,
    /// Its creators, the nearest first.
    pub lineage: Vec<Ancestor>,
    /// The root of its tree.
    pub root: Option<Ancestor>,
    /// The orphan that it is.
    pub orphan: Option<Orphan>,
    /// The nearest orphan above it.
    pub below: Option<Who>,
    /// Memory, time and GPUs of itself.
    pub own: Subtree,
    /// Memory, time and GPUs of itself and everything below it.
    pub subtree: Subtree,
    /// What itself holds beside those.
    pub own_holds: Holds,
    /// What it and everything below it hold beside those.
    pub subtree_holds: Holds,
    /// Who waits for it.
    pub waiters: Vec<Waiter>,
    /// Number of processes that a kill would end.
    pub would_die: usize,
    /// Why it would not be killed; `None` where it would be.
    pub refusal: Option<String>,
    /// Number of creators, members and waiters that the asker does not see.
    #[cfg_attr(
        not(feature = "agent"),
        expect(dead_code, reason = "the command line itself sees all")
    )]
    pub others: usize,
}

/// Whoever asks.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// Says of a process whether the asker may know of it.
    pub sees: &'a dyn Fn(ProcessId) -> bool,
    /// Says of a process that it sees whether it may know what that one has open.
    pub looks_into: &'a dyn Fn(ProcessId) -> bool,
    /// Says of a living process whether the asker may end it.
    pub ends: &'a dyn Fn(ProcessId) -> bool,
}

impl Asker<'_> {
    /// Sees and ends everything.
    pub const ALL: Self = Self {
        sees: &|_| true,
        looks_into: &|_| true,
        ends: &|_| true,
    };
}

/// Surveys the GPUs of a process and of everything below it. The driver is asked where one of them
/// has a device open.
pub async fn survey(forest: &Forest, id: Option<ProcessId>, files: &DeviceFiles) -> Survey {
    let living = id.map(|id| forest.living(id)).unwrap_or_default();
    let scan = holders::scan(living, files);
    let asked_ns = clock::boot_ns();
    let answer = if scan.holders.is_empty() {
        Answer::NotAsked
    } else {
        Server::of_this_program().ask().await
    };
    gpu::survey(forest, answer, asked_ns, scan)
}

/// Collects what is known of a process that the lineage has, as far as the asker may know of it.
#[must_use]
pub fn of_process(
    known: &Known<'_>,
    snapshot: &Snapshot,
    id: ProcessId,
    asker: Asker<'_>,
) -> Option<Explanation> {
    let forest = known.forest;
    let record = forest.record(&id)?;
    let is_live = forest.is_live(&id);
    let mut hidden = HashSet::new();
    let mut is_shown = |id: ProcessId| {
        let is_shown = (asker.sees)(id);
        if !is_shown {
            hidden.insert(id);
        }
        is_shown
    };
    let mut living = forest.living(id);
    living.retain(|id| is_shown(*id));
    let mut ancestors = forest.ancestors(&id);
    ancestors.retain(|id| is_shown(*id));
    let root = Some(orphan::root_of(forest, id)).filter(|id| is_shown(*id));
    let mut waiters = waiters(known, id);
    waiters.retain(|waiter| is_shown(waiter.who.id));
    let ancestor = |id: ProcessId| {
        let record = forest.record(&id)?;
        Some(Ancestor {
            who: Process::of_record(id, record).who(),
            died: Died::of_record(record),
        })
    };
    let subtree = orphan::sum(known, &living);
    let mut orphan = is_live.then(|| orphan::of(known, id)).flatten();
    if let Some(orphan) = &mut orphan {
        orphan.hide(asker.sees);
        orphan.subtree = subtree.clone();
    }
    let below = ancestors.iter().find(|id| forest.is_orphan(id));
    let open: Vec<_> = living
        .iter()
        .copied()
        .filter(|id| (asker.looks_into)(*id))
        .collect();
    let refusal = refusal(snapshot, id, asker);
    let would_die = living.iter().filter(|id| (asker.ends)(**id)).count();
    let mut own = Subtree::default();
    if is_live {
        own.processes = 1;
        own.gpu = known.holders.get(&id).cloned().unwrap_or_default();
        let stat = proc::stat(id.pid).filter(|_| proc::owns_pid(id));
        own.resident_bytes = stat.map_or(0, |stat| stat.resident_bytes(id.pid));
        own.cpu_ms = stat.map_or(0, |stat| stat.cpu_ms());
    }
    Some(Explanation {
        process: Process::of_record(id, record),
        died: Died::of_record(record),
        live: is_live
            .then(|| tree::look(id, &Commands::default()))
            .flatten(),
        wait_channel: proc::wait_channel(id.pid)
            .filter(|_| (asker.looks_into)(id) && proc::is_live(id)),
        zombie: proc::zombie(id.pid).filter(|_| proc::owns_pid(id)),
        lineage: ancestors
            .iter()
            .take(LINEAGE_MAX)
            .filter_map(|id| ancestor(*id))
            .collect(),
        root: root.and_then(ancestor),
        below: below.and_then(|id| Some(ancestor(*id)?.who)),
        orphan,
        own,
        subtree,
        own_holds: holds(&open[..usize::from(open.first() == Some(&id))]),
        subtree_holds: holds(&open),
        waiters,
        would_die: if refusal.is_some() { 0 } else { would_die },
        refusal,
        others: hidden.len(),
    })
}

/// Collects what is known of a zombie that the lineage has no record of any more: nothing that it
/// created is alive.
#[must_use]
pub fn of_zombie(
    known: &Known<'_>,
    snapshot: &Snapshot,
    zombie: Zombie,
    asker: Asker<'_>,
) -> Explanation {
    let id = zombie.id;
    let mut waiters = waiters(known, id);
    let all = waiters.len();
    waiters.retain(|waiter| (asker.sees)(waiter.who.id));
    let others = all - waiters.len();
    Explanation {
        process: Process {
            name: zombie.name.clone(),
            uid: zombie.uid,
            ..Process::unknown(id)
        },
        died: None,
        live: None,
        wait_channel: None,
        zombie: Some(zombie),
        lineage: Vec::new(),
        root: None,
        orphan: None,
        below: None,
        own: Subtree::default(),
        subtree: Subtree::default(),
        own_holds: Holds::default(),
        subtree_holds: Holds::default(),
        waiters,
        would_die: 0,
        refusal: refusal(snapshot, id, asker),
        others,
    }
}

fn refusal(snapshot: &Snapshot, id: ProcessId, asker: Asker<'_>) -> Option<String> {
    let refused = Guard::new(snapshot).check(id, false).err();
    let refused = refused.map(|error| error.to_string());
    let is_foreign = || proc::is_live(id) && !(asker.ends)(id);
    refused.or_else(|| is_foreign().then(|| "it is not yours to end".to_owned()))
}

/// Returns what these processes hold of sockets and locks.
fn holds(ids: &[ProcessId]) -> Holds {
    let ids = &ids[..ids.len().min(LOOKED_AT_MAX)];
    let known = proc::listening(ids.iter().map(|id| id.pid));
    let mut locks = proc::locks();
    let mut holds = Holds::default();
    for id in ids {
        let inode = |file: &proc::OpenFile| {
            let target = file.target.to_str()?.strip_prefix("socket:[")?;
            target.strip_suffix(']')?.parse::<u64>().ok()
        };
        let is_known =
            |file: &proc::OpenFile| inode(file).is_some_and(|inode| known.contains_key(&inode));
        let files = proc::open_files(id.pid, is_known).unwrap_or_default();
        let mut found = locks.remove(&id.pid).unwrap_or_default();
        proc::find_paths(id.pid, &mut found);
        if proc::owns_pid(*id) {
            let sockets = files.iter().filter_map(inode);
            holds
                .sockets
                .extend(sockets.filter_map(|inode| known.get(&inode).cloned()));
            holds.locks.extend(found);
        }
    }
    holds
}

/// Returns who waits for the end of a process: its parent, which alone can reap it, a tracer, and
/// whoever has a descriptor of it.
fn waiters(known: &Known<'_>, id: ProcessId) -> Vec<Waiter> {
    let forest = known.forest;
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |pid: u32, how| {
        let Some(waiter) = forest.live(pid).filter(|_| seen.insert((pid, how))) else {
            return;
        };
        let record = forest.record(&waiter);
        let who = record.map(|record| Process::of_record(waiter, record).who());
        let channel = proc::wait_channel(pid).unwrap_or_default();
        found.extend(who.map(|who| Waiter {
            who,
            how,
            waits_now: match how {
                "pidfd" => channel.contains("poll") || channel.contains("select"),
                _ => channel.contains("wait") && !channel.contains("poll"),
            },
        }));
    };
    if let Some(parent) = proc::parent(id) {
        add(parent, "parent");
    }
    if let Some(tracer) = proc::tracer(id.pid) {
        add(tracer, "tracer");
    }
    for pid in proc::with_pidfd(id.pid, WAITERS_LOOKED_AT_MAX) {
        if pid != std::process::id() {
            add(pid, "pidfd");
        }
    }
    found
}

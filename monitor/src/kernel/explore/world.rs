//! The host of the model: the kernel's list of processes, the maps, and the truth about who created
//! whom. Every access is one step; between two steps anybody else can run, and after each one the
//! invariants are checked that hold at all times.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lifemon_ebpf::records::EEXIST;
use lifemon_ebpf::{Event, HELD, LIVE, MemberKey, Membership, NOT_HELD, ProcessId, Record, limits};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::atomic::AtomicU64;

use super::super::shared::{HostView, TreeView};
use super::elements::Elements;

/// The first process of all. It stays, and nobody watches it.
pub(super) const INIT: ProcessId = ProcessId::new(1, 1);

/// Slots that are used: the others are free all the time, and looking at them is no step.
pub(super) const SLOTS: u32 = 4;

/// The measures of a host, and what goes wrong on it.
#[derive(Clone, Copy)]
pub(super) struct Measures {
    /// Pids are 1 to this one, and are given out in turn.
    pub(super) pids: u32,
    /// Processes that are created at most.
    pub(super) births: u32,
    /// Records that fit.
    pub(super) records: usize,
    /// Memberships that fit.
    pub(super) members: usize,
    /// True where exits are claimed through the set of the living.
    pub(super) claims_exits: bool,
    /// Calls of the kernel half on maps that are refused for a reason that passes.
    pub(super) refusals: u32,
    /// Forks that the hook is skipped for.
    pub(super) skipped_forks: u32,
    /// Exits that the hook is skipped for.
    pub(super) skipped_exits: u32,
}

impl Measures {
    /// Where nothing goes wrong, and pids are scarce.
    pub(super) const SOUND: Self = Self {
        pids: 7,
        births: 6,
        records: 64,
        members: 64,
        claims_exits: false,
        refusals: 0,
        skipped_forks: 0,
        skipped_exits: 0,
    };

    /// Lets nothing go wrong any more.
    pub(super) fn forgive(&mut self) {
        (self.refusals, self.skipped_forks, self.skipped_exits) = (0, 0, 0);
    }
}

/// The life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is in the list of processes, and its creator is still in fork.
    Forked,
    /// It runs.
    Running,
    /// No thread of it can run any more.
    Dying,
}

/// A process that has its pid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) id: ProcessId,
    pub(super) life: Life,
    /// True once SIGKILL is pending.
    pub(super) is_killed: bool,
}

/// What a process has not got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lost {
    Record,
    Member,
}

/// All that changes.
pub(super) struct State {
    pub(super) measures: Measures,
    /// The clock, in ns. Every step takes one.
    pub(super) now_ns: u64,
    pub(super) tasks: BTreeMap<u32, Task>,
    pub(super) last_pid: u32,
    /// The truth: every process that ever was, with its creator.
    creators: BTreeMap<ProcessId, ProcessId>,
    pub(super) lineage: Elements<ProcessId, Record>,
    pub(super) living: BTreeSet<ProcessId>,
    pub(super) members: Elements<MemberKey, Membership>,
    pub(super) roots: BTreeSet<ProcessId>,
    pub(super) rings: BTreeMap<u32, Vec<Event>>,
    /// Runs of programs that have not ended.
    pub(super) runs: BTreeSet<u64>,
    pub(super) last_run: u64,
    pub(super) missed_forks: u64,
    pub(super) missed_exits: u64,
    /// Trees whose every member is labelled, each with its layer and root.
    pub(super) labelled: Vec<(Membership, u32, ProcessId)>,
    /// Who has run as a member of one of those.
    pub(super) counted: BTreeSet<(u32, u32, ProcessId)>,
    /// Pids that are given out to processes that are not listed yet.
    pub(super) taken: BTreeSet<u32>,
    /// Who has got no record, or is no member, because a map was full, refused it, or the hook was
    /// skipped.
    pub(super) lost: BTreeSet<(ProcessId, Lost)>,
    /// Who was taken out of a tree, with what it creates.
    pub(super) spared: BTreeSet<ProcessId>,
    /// The closer is attached.
    pub(super) is_closed: bool,
    /// A process that forks and dies at once, as what it has forked does.
    pub(super) comet: Option<ProcessId>,
}

pub(super) struct World {
    state: Mutex<State>,
    pub(super) trees: Vec<TreeView>,
    pub(super) host: HostView,
    /// Reading it lets others run.
    point: AtomicU64,
    /// The lock of the tracker.
    pub(super) lock: shuttle::sync::Mutex<()>,
    /// Woken when a program ends.
    ended: (shuttle::sync::Mutex<()>, shuttle::sync::Condvar),
}

impl World {
    pub(super) fn new(measures: Measures) -> Self {
        let mut state = State {
            measures,
            now_ns: 1_000,
            tasks: BTreeMap::new(),
            last_pid: 1,
            creators: BTreeMap::new(),
            lineage: Elements::new(measures.records),
            living: BTreeSet::new(),
            members: Elements::new(measures.members),
            roots: BTreeSet::new(),
            rings: BTreeMap::new(),
            runs: BTreeSet::new(),
            last_run: 0,
            missed_forks: 0,
            missed_exits: 0,
            labelled: Vec::new(),
            counted: BTreeSet::new(),
            taken: BTreeSet::new(),
            lost: BTreeSet::new(),
            spared: BTreeSet::new(),
            is_closed: false,
            comet: None,
        };
        state.settle_in(INIT, ProcessId::NONE);
        Self {
            state: Mutex::new(state),
            trees: (0..limits::TREE_SLOTS)
                .map(|_| TreeView::default())
                .collect(),
            host: HostView::default(),
            point: AtomicU64::new(0),
            lock: shuttle::sync::Mutex::new(()),
            ended: (shuttle::sync::Mutex::new(()), shuttle::sync::Condvar::new()),
        }
    }

    /// Lets others run.
    pub(super) fn yield_now(&self) {
        self.point.load(Ordering::SeqCst);
    }

    /// Looks at everything, in no step of its own.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state())
    }

    /// Makes one step.
    pub(super) fn step<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        self.yield_now();
        self.fly();
        let mut state = self.state();
        state.now_ns += 1;
        let result = step(&mut state);
        self.check(&mut state);
        result
    }

    /// Lets the comet live for one generation, between two steps of somebody else, now and then: a
    /// scheduler alone comes to that too seldom.
    fn fly(&self) {
        let is_due = |_: &mut ProcessId| thread_rng().gen_range(0..8) == 0;
        // Its own steps are not interrupted by it: it is out of its place meanwhile.
        let Some(comet) = self.peek(|state| state.comet.take_if(is_due)) else {
            return;
        };
        let next = self.fork(comet);
        if next.is_some() {
            self.exit(comet);
        }
        self.peek(|state| state.comet = next.or(Some(comet)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the shared memory of a slot, in a step.
    pub(super) fn tree(&self, slot: u32) -> &TreeView {
        if slot < SLOTS {
            self.step(|_| ());
        }
        &self.trees[slot as usize]
    }

    /// Adds a process that has a record already, and runs.
    pub(super) fn settle_in(&self, creator: ProcessId) -> ProcessId {
        let mut state = self.state();
        let id = state.next_id().expect("a pid is free");
        state.settle_in(id, creator);
        id
    }

    /// Waits until all programs have ended that run now.
    pub(super) fn wait_for_running_programs(&self) {
        let before = self.step(|state| state.runs.clone());
        let mut ended = self.ended.0.lock().unwrap();
        while self.peek(|state| !state.runs.is_disjoint(&before)) {
            ended = self.ended.1.wait(ended).unwrap();
        }
    }

    /// Ends a run of a program.
    pub(super) fn end_run(&self, run: u64) {
        let ended = self.ended.0.lock().unwrap();
        self.peek(|state| state.runs.remove(&run));
        self.ended.1.notify_all();
        drop(ended);
    }

    /// Returns whether a call of the kernel half on a map is refused now.
    pub(super) fn is_refused(&self) -> bool {
        self.peek(|state| {
            let left = &mut state.measures.refusals;
            let is_refused = *left > 0 && thread_rng().gen_range(0..3) == 0;
            *left -= u32::from(is_refused);
            is_refused
        })
    }
}

impl State {
    fn settle_in(&mut self, id: ProcessId, creator: ProcessId) {
        let life = Life::Running;
        let task = Task {
            id,
            life,
            is_killed: false,
        };
        self.tasks.insert(id.pid, task);
        self.creators.insert(id, creator);
        let holds_creator = if creator.is_none() { NOT_HELD } else { HELD };
        let record = Record {
            creator,
            references: 1,
            state: LIVE,
            holds_creator,
            ..Record::default()
        };
        if let Some(above) = self.lineage.find(&creator) {
            let above = self.lineage.at(above);
            above.references += 1;
            above.holders.pids += u64::from(id.pid);
            above.holders.starts += id.start_ns;
        }
        self.lineage.insert(id, record).expect("it fits");
        self.living.insert(id);
    }

    fn next_id(&mut self) -> Option<ProcessId> {
        let pids = self.measures.pids;
        let turn = (0..pids).map(|step| (self.last_pid + step) % pids + 1);
        let is_free = |pid: &u32| !self.tasks.contains_key(pid) && !self.taken.contains(pid);
        let pid = turn.clone().find(is_free)?;
        self.last_pid = pid;
        self.now_ns += 1;
        Some(ProcessId::new(pid, self.now_ns))
    }

    /// Gives a pid to a new process; nothing where no more may be created.
    pub(super) fn take_pid(&mut self) -> Option<ProcessId> {
        let left = self.measures.births.checked_sub(1)?;
        let id = self.next_id()?;
        self.measures.births = left;
        self.taken.insert(id.pid);
        Some(id)
    }

    /// Puts a new process into the list.
    pub(super) fn list(&mut self, id: ProcessId, creator: ProcessId) {
        let task = Task {
            id,
            life: Life::Forked,
            is_killed: false,
        };
        self.taken.remove(&id.pid);
        self.tasks.insert(id.pid, task);
        self.creators.insert(id, creator);
    }

    /// Notes who is lost by an insertion that fails, until one succeeds; returns what came of it.
    pub(super) fn note(
        &mut self,
        id: ProcessId,
        lost: Lost,
        inserted: Result<(), i32>,
    ) -> Result<(), i32> {
        match inserted {
            Ok(()) => self.lost.remove(&(id, lost)),
            Err(EEXIST) => false,
            Err(_) => self.lost.insert((id, lost)),
        };
        inserted
    }

    /// Returns the process if it has its pid still.
    pub(super) fn task(&mut self, id: ProcessId) -> Option<&mut Task> {
        self.tasks.get_mut(&id.pid).filter(|task| task.id == id)
    }

    /// Returns whether a process can run, or will.
    pub(super) fn is_alive(&mut self, id: ProcessId) -> bool {
        self.task(id).is_some_and(|task| task.life != Life::Dying)
    }

    fn line(&self, id: ProcessId) -> impl Iterator<Item = ProcessId> {
        let above = |at: &ProcessId| self.creators.get(at).copied();
        std::iter::successors(Some(id), above)
    }

    /// Returns whether `id` is `root`, or was created by it or its descendants.
    pub(super) fn descends(&self, id: ProcessId, root: ProcessId) -> bool {
        self.line(id).any(|at| at == root)
    }

    /// Returns whether `id` was taken out of a tree, or descends from somebody who was.
    pub(super) fn is_spared(&self, id: ProcessId) -> bool {
        self.line(id).any(|at| self.spared.contains(&at))
    }

    /// Returns whether `id` was lost, or descends from somebody who was.
    pub(super) fn is_lost(&self, id: ProcessId) -> bool {
        let is_lost = |at| self.lost.range((at, Lost::Record)..=(at, Lost::Member));
        self.line(id).any(|at| is_lost(at).next().is_some())
    }

    /// Returns how many steps of creation `above` is above `id`.
    pub(super) fn distance(&self, id: ProcessId, above: ProcessId) -> Option<u64> {
        self.line(id).position(|at| at == above).map(|at| at as u64)
    }
}

//! The watched tree and the forest against naive models. A simulated kernel keeps the truth of a
//! random history and delivers it as a real one would: attached in the middle of things, hooks that
//! stall, rings that overflow, comparisons while the tree goes on. Nothing here is privileged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lifemon::ProcessId;
use lifemon::forest::Forest;
use lifemon::process::{Cause, Death, Died, Process};
use lifemon::watch::{Happening, Known, Watch, What};
use lifemon_ebpf::{DEAD, EVENT_EXEC, EVENT_EXIT, EVENT_FORK, Event, LIVE, OOM_KILLED, Record};
use proptest::prelude::*;
use proptest::sample::Index;

type Ids = BTreeSet<ProcessId>;

/// Pid of the first process of the tree; the next ones count up from there.
const ROOT_PID: u32 = 100;

// The truth.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// Out of the membership map, its event not yet in the ring: the exit hook has stalled.
    Dying,
    Dead,
    Gone,
}

#[derive(Debug)]
struct Proc {
    id: ProcessId,
    creator: ProcessId,
    parent: ProcessId,
    name: [u8; 16],
    status: u32,
    life: Life,
    /// When it left the membership map.
    died_at: Option<u64>,
    is_member: bool,
}

impl Proc {
    fn is_oom(&self) -> bool {
        self.status == 9 && self.id.pid.is_multiple_of(2)
    }

    fn death(&self) -> Death {
        let mut death = Death::from_wait_status(self.status.cast_signed());
        death.is_oom = self.is_oom();
        death
    }

    fn cause(&self) -> Cause {
        match self.status {
            _ if self.is_oom() => Cause::Oom,
            9 | 0x8b => Cause::Signal,
            _ => Cause::Exited,
        }
    }

    fn describe(&self) -> Process {
        let mut process = Process::unknown(self.id);
        process.name = lifemon::process::comm(&self.name);
        process.uid = Some(0);
        process.ns_pid = Some(self.id.pid);
        process.creator = Some(self.creator);
        process
    }
}

/// An event with the truth at the moment when it went into the ring.
struct Entry {
    event: Event,
    /// Exit: children that were alive.
    alive: Ids,
    /// Exit: children whose own exit was not in the ring yet.
    not_told: Ids,
    /// Events lost before this one.
    lost: u64,
}

struct Kernel {
    procs: Vec<Proc>,
    ring: VecDeque<Entry>,
    lost: u64,
    /// Events that will find the ring full.
    full_for: u8,
    now: u64,
}

fn name(letter: u8) -> [u8; 16] {
    let mut name = [0; 16];
    name[0] = b'a' + letter % 26;
    name
}

impl Kernel {
    fn new() -> Self {
        let mut kernel = Self {
            procs: Vec::new(),
            ring: VecDeque::new(),
            lost: 0,
            full_for: 0,
            now: 1,
        };
        kernel.create(ProcessId::new(1, 1), name(0));
        kernel
    }

    fn root(&self) -> ProcessId {
        self.procs[0].id
    }

    fn get(&self, id: ProcessId) -> &Proc {
        &self.procs[(id.pid - ROOT_PID) as usize]
    }

    fn create(&mut self, creator: ProcessId, name: [u8; 16]) -> usize {
        let at = self.procs.len();
        let id = ProcessId::new(ROOT_PID + at as u32, self.now);
        let (parent, life) = (creator, Life::Alive);
        let (status, died_at, is_member) = (0, None, false);
        let new = Proc {
            id,
            creator,
            parent,
            name,
            status,
            life,
            died_at,
            is_member,
        };
        self.procs.push(new);
        at
    }

    fn pick(&self, index: Index, life: Life) -> Option<usize> {
        let all = self
            .procs
            .iter()
            .enumerate()
            .filter(|(_, proc)| proc.life == life);
        let all: Vec<_> = all.map(|(at, _)| at).collect();
        (!all.is_empty()).then(|| all[index.index(all.len())])
    }

    fn children(&self, id: ProcessId) -> impl Iterator<Item = &Proc> {
        self.procs.iter().filter(move |proc| proc.creator == id)
    }

    fn children_in(&self, id: ProcessId, lives: &[Life]) -> Ids {
        self.children(id)
            .filter(|child| lives.contains(&child.life))
            .map(|child| child.id)
            .collect()
    }

    fn members(&self) -> Ids {
        let members = self
            .procs
            .iter()
            .filter(|proc| proc.is_member && proc.life == Life::Alive);
        members.map(|proc| proc.id).collect()
    }

    /// Whether a record of it is kept: it has not left its exit hook, or a descendant has not.
    fn has_record(&self, id: ProcessId) -> bool {
        matches!(self.get(id).life, Life::Alive | Life::Dying)
            || self.children(id).any(|child| self.has_record(child.id))
    }

    fn emit(&mut self, at: usize, kind: u32) {
        let proc = &self.procs[at];
        let event = Event {
            time_ns: self.now,
            process: proc.id,
            creator: proc.creator,
            name: proc.name,
            kind,
            status: if kind == EVENT_EXIT { proc.status } else { 0 },
            flags: if kind == EVENT_EXIT && proc.is_oom() {
                OOM_KILLED
            } else {
                0
            },
            ns_pid: proc.id.pid,
            ..Event::default()
        };
        if self.full_for > 0 {
            self.full_for -= 1;
            self.lost += 1;
            return;
        }
        let alive = self.children_in(proc.id, &[Life::Alive]);
        let not_told = self.children_in(proc.id, &[Life::Alive, Life::Dying]);
        self.ring.push_back(Entry {
            event,
            alive,
            not_told,
            lost: self.lost,
        });
    }

    fn fork(&mut self, creator: usize) {
        let (id, name) = (self.procs[creator].id, self.procs[creator].name);
        let child = self.create(id, name);
        if self.procs[creator].is_member {
            self.procs[child].is_member = true;
            self.emit(child, EVENT_FORK);
        }
    }

    fn finish_exit(&mut self, at: usize) {
        if self.procs[at].is_member {
            self.emit(at, EVENT_EXIT);
        }
        self.procs[at].life = Life::Dead;
    }

    fn exit(&mut self, at: usize, status: u32, stalls: bool) {
        let proc = &mut self.procs[at];
        (proc.status, proc.life, proc.died_at) = (status, Life::Dying, Some(self.now));
        if !stalls {
            self.finish_exit(at);
        }
    }

    /// Its children get another parent; which ones are alive.
    fn gone(&mut self, at: usize) -> Ids {
        let id = self.procs[at].id;
        self.procs[at].life = Life::Gone;
        let mut moved = Ids::new();
        for child in self.procs.iter_mut().filter(|child| child.parent == id) {
            child.parent = ProcessId::new(1, 1);
            moved.extend((child.life == Life::Alive).then_some(child.id));
        }
        moved
    }

    fn run<'a>(&mut self, ops: impl IntoIterator<Item = &'a Op>) {
        for op in ops {
            self.step(op);
        }
    }

    fn step(&mut self, op: &Op) {
        self.now += 1;
        match op {
            Op::Fork(index) => self
                .pick(*index, Life::Alive)
                .into_iter()
                .for_each(|at| self.fork(at)),
            Op::Exec(index, letter) => {
                if let Some(at) = self.pick(*index, Life::Alive) {
                    self.procs[at].name = name(*letter);
                    if self.procs[at].is_member {
                        self.emit(at, EVENT_EXEC);
                    }
                }
            }
            Op::Exit {
                who,
                status,
                stalls,
            } => {
                let at = self.pick(*who, Life::Alive);
                if let Some(at) = at {
                    self.exit(at, *status, *stalls);
                }
            }
            Op::Finish(index) => {
                self.pick(*index, Life::Dying)
                    .into_iter()
                    .for_each(|at| self.finish_exit(at));
            }
            Op::Label(index) => {
                if let Some(at) = self.pick(*index, Life::Alive) {
                    self.procs[at].is_member = true;
                }
            }
            Op::Lose(events) => self.full_for = self.full_for.saturating_add(*events),
            Op::Gone(_) | Op::Drain => {}
        }
    }
}

// Histories.

#[derive(Debug, Clone)]
enum Op {
    Fork(Index),
    Exec(Index, u8),
    Exit {
        who: Index,
        status: u32,
        stalls: bool,
    },
    /// A stalled exit hook goes on.
    Finish(Index),
    Gone(Index),
    /// The label pass of an attach comes to a process.
    Label(Index),
    Lose(u8),
    Drain,
}

fn ops(lossy: bool, length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    let exit = (
        any::<Index>(),
        proptest::sample::select(vec![0_u32, 256, 9, 0x8b]),
        0..4,
    )
        .prop_map(|(who, status, stall)| Op::Exit {
            who,
            status,
            stalls: stall == 0,
        });
    let op = prop_oneof![
        6 => any::<Index>().prop_map(Op::Fork),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(who, letter)| Op::Exec(who, letter)),
        4 => exit,
        1 => any::<Index>().prop_map(Op::Finish),
        2 => any::<Index>().prop_map(Op::Gone),
        2 => any::<Index>().prop_map(Op::Label),
        u32::from(lossy) => (1_u8..6).prop_map(Op::Lose),
        2 => Just(Op::Drain),
    ];
    proptest::collection::vec(op, length)
}

#[derive(Debug, Clone)]
struct History {
    before: Vec<Op>,
    labelling: Vec<Op>,
    /// After the last label pass, before the members are read.
    labelled: Vec<Op>,
    /// Between the readings of the members and of the records.
    reading: Vec<Op>,
    watching: Vec<Op>,
    /// What happens while members are read for a comparison, and before the last drain of it.
    comparing: Vec<(Vec<Op>, Vec<Op>)>,
}

fn history(lossy: bool) -> impl Strategy<Value = History> {
    let some = move |most| ops(lossy, 0..most);
    let comparing = proptest::collection::vec((some(5), some(5)), 0..8);
    (some(40), some(16), some(8), some(8), some(120), comparing).prop_map(
        |(before, labelling, labelled, reading, watching, comparing)| History {
            before,
            labelling,
            labelled,
            reading,
            watching,
            comparing,
        },
    )
}

// The session: what `session.rs` does with a real kernel, and what must hold meanwhile.

struct Session {
    kernel: Kernel,
    watch: Watch,
    comparing: std::vec::IntoIter<(Vec<Op>, Vec<Op>)>,
    /// Losses that a comparison has recovered.
    handled: u64,
    /// Events before this moment may tell of what the snapshot has or lacks already.
    attached_at: u64,
    /// Members of the snapshot, and those whose fork or exit was reported.
    announced: Ids,
    started_with: usize,
    late: usize,
    forks: Ids,
    exits: Ids,
    gone: Ids,
    /// Members whose record was gone before it could be read, and their creator with it.
    unlinked: Ids,
    causes: BTreeMap<Cause, u64>,
    causes_unknown: u64,
    resynced: u64,
    /// Deaths that comparisons have found, but for those that were gone before the last one.
    compared: Ids,
}

impl Session {
    fn attach(history: &History) -> Self {
        let mut kernel = Kernel::new();
        let before = history
            .before
            .iter()
            .filter(|op| !matches!(op, Op::Label(_)));
        kernel.run(before);
        kernel.run(&history.labelling);
        kernel
            .procs
            .iter_mut()
            .for_each(|proc| proc.is_member |= proc.life == Life::Alive);
        kernel.run(&history.labelled);
        let members = kernel.members();
        kernel.run(&history.reading);
        let described = describe(&kernel, &members);
        let unlinked = described.iter().filter(|process| process.creator.is_none());
        let unlinked = unlinked.map(|process| process.id).collect();
        let watch = Watch::new(kernel.root(), described, ghosts(&kernel));
        Self {
            attached_at: kernel.now,
            kernel,
            watch,
            comparing: history.comparing.clone().into_iter(),
            handled: 0,
            started_with: members.len(),
            late: 0,
            announced: members,
            forks: Ids::new(),
            exits: Ids::new(),
            gone: Ids::new(),
            unlinked,
            causes: BTreeMap::new(),
            causes_unknown: 0,
            resynced: 0,
            compared: Ids::new(),
        }
    }

    fn is_clean(&self) -> bool {
        self.kernel.lost == self.handled
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Label(_) => {}
            Op::Drain => self.drain(),
            Op::Gone(index) => {
                self.kernel.now += 1;
                if let Some(at) = self.kernel.pick(*index, Life::Dead) {
                    self.end(at);
                }
            }
            op => self.kernel.step(op),
        }
        self.check_totals();
    }

    /// A process is gone, which its pidfd tells at once if its death has been reported.
    fn end(&mut self, at: usize) {
        let moved = self.kernel.gone(at);
        let id = self.kernel.procs[at].id;
        if self.exits.contains(&id) {
            let orphaned = self.tell_gone(id);
            if self.is_clean() {
                assert!(orphaned.is_superset(&moved), "reparented and not reported");
            }
        }
    }

    fn tell_gone(&mut self, id: ProcessId) -> Ids {
        assert!(self.gone.insert(id));
        let happenings = self.watch.gone(id, self.kernel.now);
        let (first, rest) = happenings
            .split_first()
            .expect("whoever died is gone some time");
        assert_eq!(first.process.id, id);
        assert!(matches!(first.what, What::Gone { .. }));
        let root_alive = self.watch.is_live(&self.kernel.root());
        for happening in rest {
            assert_eq!(happening.what, What::Orphaned { root_alive });
            assert_eq!(happening.process.creator, Some(id));
        }
        let orphaned: Ids = rest.iter().map(|happening| happening.process.id).collect();
        let alive = |child: &&Proc| self.watch.is_live(&child.id);
        let possible = self.kernel.children(id).filter(alive);
        let possible: Ids = possible.map(|child| child.id).collect();
        assert!(orphaned.is_subset(&possible) && orphaned.len() == rest.len());
        let sure: Ids = possible.difference(&self.unlinked).copied().collect();
        assert!(
            orphaned.is_superset(&sure),
            "{id:?}: {orphaned:?}, not {sure:?}"
        );
        orphaned
    }

    fn drain(&mut self) {
        self.apply_ring(false);
        if !self.is_clean() {
            self.compare();
        }
        let late: Vec<_> = self.exits.difference(&self.gone).copied().collect();
        for id in late {
            if self.kernel.get(id).life == Life::Gone {
                self.tell_gone(id);
            }
        }
        if self.is_clean() {
            self.check_living();
        }
    }

    fn apply_ring(&mut self, comparing: bool) {
        while let Some(entry) = self.kernel.ring.pop_front() {
            if let Some(happening) = self.watch.apply(&entry.event) {
                assert_eq!(happening.process.id, entry.event.process);
                assert_eq!(happening.at_ns, Some(entry.event.time_ns));
                assert!(!happening.resynced);
                self.check_creator(&entry, &happening);
                if let (What::Exit { orphans, .. }, false) = (&happening.what, comparing) {
                    let orphans: Ids = orphans.iter().map(|orphan| orphan.id).collect();
                    self.check_orphans(&entry, &orphans);
                }
                self.note(&happening);
            }
        }
    }

    /// A dead creator is known by name as long as a child of it lives.
    fn check_creator(&self, entry: &Entry, happening: &Happening) {
        let is_early = entry.event.time_ns <= self.attached_at;
        let is_known = self.announced.contains(&entry.event.process);
        if is_early || !is_known || self.kernel.lost > 0 || happening.process.creator.is_none() {
            return;
        }
        let creator = happening.creator.as_ref().expect("the process has one");
        let is_member =
            self.announced.contains(&creator.id) && !self.unlinked.contains(&creator.id);
        assert!(
            creator.name.is_some() || !is_member,
            "the name of {creator:?}"
        );
    }

    /// The orphans of a death are the children that were alive when it was told. Of a death before
    /// the snapshot only those can be known that the snapshot has.
    fn check_orphans(&self, entry: &Entry, orphans: &Ids) {
        if entry.lost != self.handled {
            return;
        }
        let id = entry.event.process;
        assert!(
            orphans.is_subset(&entry.not_told),
            "{id:?}: {orphans:?} had died before"
        );
        let mut sure = entry.alive.clone();
        if entry.event.time_ns <= self.attached_at {
            sure.retain(|child| self.kernel.get(*child).life == Life::Alive);
        }
        assert!(
            orphans.is_superset(&sure),
            "{id:?}: orphans {orphans:?}, not {sure:?}"
        );
    }

    /// As the session does it: drain, mark, read, drain, compare; the tree goes on meanwhile.
    fn compare(&mut self) {
        let lost = self.kernel.lost;
        let (reading, after) = self.comparing.next().unwrap_or_default();
        self.apply_ring(true);
        self.watch.mark();
        self.compared.retain(|id| !self.gone.contains(id));
        let begin = self.kernel.members();
        self.kernel.run(&reading);
        let end = self.kernel.members();
        // What comes or goes while the map is read may be found or not.
        let by_chance = |id: &ProcessId| (id.pid + self.kernel.lost as u32).is_multiple_of(2);
        let read = |id: &ProcessId| begin.contains(id) && end.contains(id) || by_chance(id);
        let members: Vec<_> = begin.union(&end).filter(|id| read(id)).copied().collect();
        let records: BTreeMap<_, _> = self
            .kernel
            .procs
            .iter()
            .filter(|proc| self.kernel.has_record(proc.id))
            .map(|proc| {
                let died = proc.died_at.map(|at_ns| Died::new(at_ns, proc.death()));
                let process = Some(proc.describe());
                (proc.id, Known { process, died })
            })
            .collect();
        self.kernel.run(&after);
        self.apply_ring(true);
        let found = self
            .watch
            .resync(&members, |id| records.get(&id).cloned().unwrap_or_default());
        self.handled = lost;
        self.resynced += found.len() as u64;
        for happening in &found {
            assert!(happening.resynced);
            if let What::Exit { orphans, .. } = &happening.what {
                self.compared.insert(happening.process.id);
                let orphans: Ids = orphans.iter().map(|orphan| orphan.id).collect();
                self.check_compared_orphans(happening.process.id, &orphans);
            }
            self.note(happening);
        }
    }

    /// Whoever lives is named, and nobody who had died before the creator. With losses while it was
    /// compared the next comparison has to find the rest.
    fn check_compared_orphans(&self, id: ProcessId, orphans: &Ids) {
        let died_at = self.kernel.get(id).died_at;
        let died_at = died_at.expect("a comparison found a living one dead");
        if !self.is_clean() {
            return;
        }
        let outlived = |child: &&Proc| {
            child.life == Life::Dying || child.died_at.is_none_or(|at| at > died_at)
        };
        let possible = self.kernel.children(id).filter(outlived);
        let possible: Ids = possible.map(|child| child.id).collect();
        assert!(orphans.is_subset(&possible), "{id:?}: {orphans:?} had died");
        let sure = self.kernel.children_in(id, &[Life::Alive]);
        assert!(
            orphans.is_superset(&sure),
            "{id:?}: {orphans:?}, not {sure:?}"
        );
    }

    fn note(&mut self, happening: &Happening) {
        let id = happening.process.id;
        match &happening.what {
            What::Fork => {
                assert!(
                    self.announced.insert(id),
                    "{id:?} was known before its fork"
                );
                let proc = self.kernel.get(id);
                // Its record can go while a comparison reads.
                let unknown = happening.process.creator.is_none()
                    && happening.resynced
                    && proc.life != Life::Alive;
                self.unlinked.extend(unknown.then_some(id));
                assert!(unknown || happening.process.creator == Some(proc.creator));
                self.forks.insert(id);
            }
            What::Exit { death, .. } => {
                assert!(self.exits.insert(id), "{id:?} died twice");
                let proc = self.kernel.get(id);
                assert_ne!(proc.life, Life::Alive, "{id:?} lives");
                self.late += usize::from(self.announced.insert(id));
                match death {
                    Some(death) => {
                        assert_eq!(*death, proc.death());
                        *self.causes.entry(proc.cause()).or_default() += 1;
                    }
                    None => self.causes_unknown += 1,
                }
            }
            _ => {}
        }
    }

    fn check_totals(&self) {
        let totals = self.watch.totals();
        assert_eq!(
            totals.seen as usize,
            self.started_with + self.forks.len() + self.late
        );
        assert_eq!(totals.exits, self.causes);
        assert_eq!(totals.exits_unknown, self.causes_unknown);
        assert_eq!(totals.resynced, self.resynced);
        assert_eq!(self.watch.living() + self.exits.len(), totals.seen as usize);
    }

    /// Nothing is missing: the model has exactly the living, each death was reported, and the
    /// orphans are those of the truth.
    fn check_living(&self) {
        let mut living = Ids::new();
        for proc in &self.kernel.procs {
            let id = proc.id;
            // Of whom the snapshot did not have nothing is known before the event.
            let is_known = self.announced.contains(&id);
            let stalls = proc.life == Life::Dying && !self.exits.contains(&id);
            if proc.is_member && (proc.life == Life::Alive || stalls && is_known) {
                living.insert(id);
            } else if proc.is_member && !stalls && (is_known || self.handled == 0) {
                assert!(self.exits.contains(&id), "the death of {id:?} is missing");
            }
            assert_eq!(self.watch.is_live(&id), living.contains(&id), "{id:?}");
        }
        assert_eq!(self.watch.living(), living.len());
        let orphan = |id: &&ProcessId| {
            **id != self.kernel.root() && !living.contains(&self.kernel.get(**id).creator)
        };
        let expected: Vec<_> = living.iter().filter(orphan).copied().collect();
        let mut expected: Vec<_> = expected
            .iter()
            .map(|id| self.kernel.get(*id).describe().who())
            .collect();
        let mut orphans = self.watch.orphans();
        if self.handled > 0 {
            // A lost exec leaves the old name.
            for who in expected.iter_mut().chain(&mut orphans) {
                who.name = None;
            }
        }
        assert_eq!(orphans, expected);
    }

    /// Everything that is under way ends.
    fn settle(&mut self) {
        self.kernel.full_for = 0;
        self.comparing = Vec::new().into_iter();
        while let Some(at) = self
            .kernel
            .procs
            .iter()
            .position(|proc| proc.life == Life::Dying)
        {
            self.kernel.now += 1;
            self.kernel.finish_exit(at);
        }
        self.drain();
        while let Some(at) = self
            .kernel
            .procs
            .iter()
            .position(|proc| proc.life == Life::Dead)
        {
            self.end(at);
        }
        self.check_totals();
        self.check_living();
        self.check_memory();
    }

    /// When every dead process is gone, the model knows the living, their creators for the name,
    /// and the deaths that comparisons have found, whose events may come late; and of each who
    /// created it. Nobody else.
    fn check_memory(&self) {
        let mut needed: Ids = self.compared.clone();
        needed.insert(self.kernel.root());
        for id in self.kernel.members() {
            needed.extend([id, self.kernel.get(id).creator]);
        }
        let mut pids: BTreeSet<_> = needed.iter().map(|id| id.pid).collect();
        let known = needed.iter().filter(|id| id.pid >= ROOT_PID);
        pids.extend(known.map(|id| self.kernel.get(*id).creator.pid));
        let known = format!("{:?}", self.watch);
        for part in known.split(" pid: ").skip(1) {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            let pid: u32 = part[..end].parse().expect("a pid");
            assert!(
                pids.contains(&pid),
                "still holds {pid}, needed are {pids:?}: {known}"
            );
        }
    }
}

fn describe(kernel: &Kernel, members: &Ids) -> Vec<Process> {
    let process = |id: &ProcessId| {
        if kernel.has_record(*id) {
            kernel.get(*id).describe()
        } else {
            Process::unknown(*id)
        }
    };
    members.iter().map(process).collect()
}

fn ghosts(kernel: &Kernel) -> Vec<Process> {
    let kept = |proc: &&Proc| proc.life != Life::Alive && kernel.has_record(proc.id);
    kernel
        .procs
        .iter()
        .filter(kept)
        .map(Proc::describe)
        .collect()
}

fn run(history: &History) {
    let mut session = Session::attach(history);
    history.watching.iter().for_each(|op| session.step(op));
    session.settle();
    while let Some(at) = session
        .kernel
        .procs
        .iter()
        .position(|proc| proc.life == Life::Alive)
    {
        session.kernel.now += 1;
        session.kernel.exit(at, 0, false);
    }
    session.settle();
    assert_eq!(session.watch.living(), 0);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn without_loss_the_model_is_the_truth(history in history(false)) {
        run(&history);
    }

    #[test]
    fn a_comparison_makes_every_loss_good(history in history(true)) {
        run(&history);
    }
}

// The forest.

/// Each process is created by an earlier one, or by one that is not known.
fn forest() -> impl Strategy<Value = Vec<(ProcessId, Record)>> {
    let one = (any::<Index>(), any::<bool>(), 0..8);
    proptest::collection::vec(one, 0..60).prop_map(|all| {
        let id = |at: usize| ProcessId::new(at as u32 + 1, at as u64 * 10 + 1);
        let record = |(at, (index, alive, known)): (usize, &(Index, bool, i32))| {
            let creator = match (at, known) {
                (0, _) => ProcessId::NONE,
                (_, 0) => ProcessId::new(9_999, 1),
                _ => id(index.index(at)),
            };
            let state = if *alive { LIVE } else { DEAD };
            (
                id(at),
                Record {
                    creator,
                    state,
                    ..Record::default()
                },
            )
        };
        all.iter().enumerate().map(record).collect()
    })
}

/// Creators of `id`, nearest first, as far as they are recorded.
fn creators(records: &BTreeMap<ProcessId, Record>, id: ProcessId) -> Vec<ProcessId> {
    let creator = records.get(&id).map(|record| record.creator);
    match creator.filter(|creator| records.contains_key(creator)) {
        Some(creator) => [vec![creator], creators(records, creator)].concat(),
        None => Vec::new(),
    }
}

fn sorted(mut ids: Vec<ProcessId>) -> Vec<ProcessId> {
    ids.sort_unstable();
    ids
}

fn check_forest(forest: &Forest, records: &BTreeMap<ProcessId, Record>) {
    let alive = |id: &ProcessId| records.get(id).is_some_and(|record| record.state == LIVE);
    let dead = |id: &ProcessId| records.contains_key(id) && !alive(id);
    let unknown = ProcessId::new(9_999, 1);
    for root in records.keys().copied().chain([unknown]) {
        let above = creators(records, root);
        assert_eq!(forest.ancestors(&root), above);
        let children = records.iter().filter(|(_, record)| record.creator == root);
        let children: Vec<_> = children.map(|(id, _)| *id).collect();
        assert_eq!(forest.children(&root), children);
        assert_eq!(forest.is_live(&root), alive(&root));
        let belongs = |id: &&ProcessId| {
            let first = creators(records, **id).last().copied().unwrap_or(**id);
            let of_unknown = root == unknown && records[&first].creator == unknown;
            **id == root || creators(records, **id).contains(&root) || of_unknown
        };
        let expected: Vec<_> = records.keys().filter(belongs).copied().collect();
        let tree = forest.tree(root);
        for (at, id) in tree.iter().enumerate().filter(|(_, id)| **id != root) {
            let creator = records[id].creator;
            assert!(
                creator == root || tree[..at].contains(&creator),
                "before its creator"
            );
        }
        assert_eq!(sorted(tree), expected);
        let living = expected
            .iter()
            .filter(|id| alive(id))
            .copied()
            .collect::<Vec<_>>();
        assert_eq!(sorted(forest.living(root)), living);
    }
    let orphan = |id: &&ProcessId| alive(id) && dead(&records[*id].creator);
    let orphans: Vec<_> = records.keys().filter(orphan).copied().collect();
    assert_eq!(forest.orphans(), orphans);
    assert_eq!(
        forest.ghosts(),
        records.keys().filter(|id| dead(id)).count()
    );
    assert_eq!(forest.len(), records.len());
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn a_forest_is_what_recursion_says(records in forest().prop_shuffle()) {
        let naive = records.iter().copied().collect();
        check_forest(&Forest::new(records), &naive);
    }

    /// Half-written records can link anything to anything.
    #[test]
    fn any_links_at_all_have_an_end(links in proptest::collection::vec(0_u32..20, 20)) {
        let id = |pid: u32| ProcessId::new(pid, u64::from(pid));
        let record = |creator| Record { creator: id(creator), state: LIVE, ..Record::default() };
        let pairs = (1_u32..).zip(&links);
        let forest = Forest::new(pairs.map(|(pid, creator)| (id(pid), record(*creator))));
        for pid in 1..=20 {
            let mut tree = sorted(forest.tree(id(pid)));
            tree.dedup();
            prop_assert_eq!(tree.len(), forest.tree(id(pid)).len());
            prop_assert!(forest.ancestors(&id(pid)).len() <= links.len());
        }
    }
}

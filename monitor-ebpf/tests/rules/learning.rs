//! Learning against a naive kernel: processes that fork, die in stages and hand over their children
//! while passes learn them, with anything else between any two accesses of a pass. What is known in
//! the end is exactly what can be known, and every reference is counted.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lifemon_ebpf::learning::{self, Processes};
use lifemon_ebpf::limits::DYING_PARENTS;
use lifemon_ebpf::rules::{self, Link};
use lifemon_ebpf::{ANCESTOR_DUE, CREATOR_DUE, DEAD, HELD, LIVE, NOT_HELD, ProcessId};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::history::{Pick, config, pick};
use crate::model::tidy;
use crate::store::{Records, Store, locked};

/// How far a process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// No thread can run; its exit hook is to come.
    Dying,
    /// Its exit hook has run; learning by its exit is to come.
    Hooked,
    /// All hooks have run, or were not attached yet; it has its children.
    Leaving,
    /// It has handed them over.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    parent: Option<ProcessId>,
    stage: Stage,
}

#[derive(Debug, Clone)]
enum Lesson {
    /// Creates a process; `true`: its parent is that of its creator (`CLONE_PARENT`).
    Fork(Pick, bool),
    /// Starts to die.
    Exit(Pick),
    /// A dying process takes its next step.
    Step(Index),
    /// A pass comes to a process, with so many lessons between its accesses.
    Visit(Index, u8),
}

/// The kernel and the records, while tracking starts.
struct Kernel {
    store: Store,
    tasks: RefCell<BTreeMap<ProcessId, Task>>,
    /// Who created whom: the parent, of those older than tracking.
    creators: RefCell<BTreeMap<ProcessId, ProcessId>>,
    is_learning: Cell<bool>,
    /// Records inserted and creators connected.
    changes: Cell<u64>,
    /// Happens before the next accesses of a pass.
    meanwhile: RefCell<VecDeque<Lesson>>,
}

impl Processes for Kernel {
    type Task = ProcessId;

    fn id(&self, task: ProcessId) -> ProcessId {
        task
    }

    fn parent(&self, task: ProcessId) -> Option<ProcessId> {
        self.happen();
        self.tasks.borrow()[&task].parent
    }

    fn can_run(&self, task: ProcessId) -> bool {
        self.happen();
        self.stage(task) == Stage::Running
    }

    fn link(&self, id: &ProcessId) -> Option<Link> {
        self.happen();
        locked(&self.store.records).get(id).copied()
    }

    fn is_recorded(&self, id: &ProcessId) -> bool {
        self.happen();
        locked(&self.store.records).contains_key(id)
    }

    fn insert(&self, task: ProcessId, creator: &ProcessId, holds_creator: u64) -> bool {
        self.happen();
        if locked(&self.store.records).contains_key(&task) {
            return false;
        }
        self.store.insert(task, *creator, holds_creator);
        self.changes.set(self.changes.get() + 1);
        true
    }

    fn hold(&self, id: &ProcessId, by: &ProcessId) -> bool {
        self.happen();
        let is_there = locked(&self.store.records).contains_key(id);
        if is_there {
            self.store.reference(id, by);
        }
        is_there
    }

    fn let_go(&self, id: &ProcessId, by: &ProcessId) {
        self.happen();
        self.store.unreference(id, by);
    }

    fn connect(&self, id: &ProcessId, due: u64, creator: &ProcessId, holds_creator: u64) -> bool {
        self.happen();
        let mut records = locked(&self.store.records);
        let Some(record) = records.get_mut(id) else {
            return false;
        };
        if record.holds_creator != due {
            return false;
        }
        record.holds_creator = holds_creator;
        record.creator = *creator;
        self.changes.set(self.changes.get() + 1);
        true
    }

    fn end(&self, id: &ProcessId) {
        self.happen();
        self.mark_dead(id);
    }
}

impl Kernel {
    /// `creators` are those of the processes that are older than tracking, in order; `dying` are
    /// past their last instruction when the first hook is attached.
    fn new(creators: &[Index], dying: &[Index]) -> Self {
        let kernel = Self {
            store: Store::default(),
            tasks: RefCell::default(),
            creators: RefCell::default(),
            is_learning: Cell::new(true),
            changes: Cell::new(0),
            meanwhile: RefCell::default(),
        };
        kernel.create(None, None);
        for index in creators {
            let among: Vec<_> = kernel.all().collect();
            let creator = Some(among[index.index(among.len())]);
            kernel.create(creator, creator);
        }
        for index in dying {
            let younger: Vec<_> = kernel.all().skip(1).collect();
            if !younger.is_empty() {
                kernel.set(younger[index.index(younger.len())], Stage::Leaving);
            }
        }
        kernel
    }

    fn create(&self, creator: Option<ProcessId>, parent: Option<ProcessId>) -> ProcessId {
        let number = self.tasks.borrow().len() as u32 + 1;
        let id = ProcessId::new(number, u64::from(number) * 10);
        let stage = Stage::Running;
        self.tasks.borrow_mut().insert(id, Task { parent, stage });
        if let Some(creator) = creator {
            self.creators.borrow_mut().insert(id, creator);
        }
        id
    }

    fn all(&self) -> impl Iterator<Item = ProcessId> {
        let ids: Vec<_> = self.tasks.borrow().keys().copied().collect();
        ids.into_iter()
    }

    fn in_stage(&self, stages: impl Fn(Stage) -> bool) -> Vec<ProcessId> {
        self.all().filter(|id| stages(self.stage(*id))).collect()
    }

    fn stage(&self, id: ProcessId) -> Stage {
        self.tasks.borrow()[&id].stage
    }

    fn set(&self, id: ProcessId, stage: Stage) {
        self.tasks.borrow_mut().get_mut(&id).expect("it is").stage = stage;
    }

    /// One lesson between two accesses of a pass. Its own accesses are not interrupted again.
    fn happen(&self) {
        let lesson = self.meanwhile.borrow_mut().pop_front();
        if let Some(lesson) = lesson {
            let rest = self.meanwhile.take();
            self.take(&lesson, &mut VecDeque::new());
            self.meanwhile.replace(rest);
        }
    }

    fn take(&self, lesson: &Lesson, next: &mut VecDeque<Lesson>) {
        match lesson {
            Lesson::Fork(pick, is_sibling) => {
                if let Some(creator) = pick.of(&self.in_stage(|stage| stage == Stage::Running)) {
                    self.fork(creator, *is_sibling);
                }
            }
            Lesson::Exit(pick) => {
                // The first process stays.
                let running = self.in_stage(|stage| stage == Stage::Running);
                if let Some(id) = pick.of(&running[1..]) {
                    self.set(id, Stage::Dying);
                }
            }
            Lesson::Step(index) => {
                let dying = self.in_stage(|stage| stage != Stage::Running && stage != Stage::Gone);
                if !dying.is_empty() {
                    self.step(dying[index.index(dying.len())]);
                }
            }
            Lesson::Visit(index, between) => {
                let visited = self.in_stage(|stage| stage != Stage::Gone);
                let between = usize::from(*between).min(next.len());
                self.meanwhile.replace(next.drain(..between).collect());
                learning::visit(self, visited[index.index(visited.len())]);
                self.meanwhile.take();
            }
        }
    }

    /// What the fork hook does, and `insert_child`.
    fn fork(&self, creator: ProcessId, is_sibling: bool) {
        let parent = if is_sibling {
            self.tasks.borrow()[&creator].parent.unwrap_or(creator)
        } else {
            creator
        };
        let id = self.create(Some(creator), Some(parent));
        let is_recorded = locked(&self.store.records).contains_key(&creator);
        let holds_creator = match is_recorded {
            true => HELD,
            false if self.is_learning.get() => CREATOR_DUE,
            false => NOT_HELD,
        };
        if is_recorded {
            self.store.reference(&creator, &id);
        }
        self.store.insert(id, creator, holds_creator);
    }

    /// What a dying process does next.
    fn step(&self, id: ProcessId) {
        match self.stage(id) {
            Stage::Dying => {
                self.set(id, Stage::Hooked);
                self.mark_dead(&id);
            }
            Stage::Hooked => {
                self.set(id, Stage::Leaving);
                if self.is_learning.get() {
                    learning::learn(self, id);
                    self.mark_dead(&id);
                }
            }
            Stage::Leaving => {
                self.set(id, Stage::Gone);
                let heir = self.heir(id);
                let mut tasks = self.tasks.borrow_mut();
                let orphans = tasks.values_mut().filter(|task| task.parent == Some(id));
                orphans.for_each(|task| task.parent = heir);
            }
            Stage::Running | Stage::Gone => {}
        }
    }

    /// Everybody is a subreaper here: so what a parent says is never less than can be known.
    fn heir(&self, id: ProcessId) -> Option<ProcessId> {
        let tasks = self.tasks.borrow();
        let parent = |at: &ProcessId| tasks[at].parent;
        std::iter::successors(parent(&id), parent).find(|at| tasks[at].stage == Stage::Running)
    }

    /// Who marks it dead drops its reference; the rest is as `bury`.
    fn mark_dead(&self, id: &ProcessId) {
        let is_live = |link: &Link| link.state == LIVE;
        if !locked(&self.store.records).get(id).is_some_and(is_live) {
            return;
        }
        self.store.mark_dead(id);
        if self.is_learning.get() {
            self.store.unreference(id, id);
        } else {
            self.store
                .run(Some(*id), &|| {}, |caller| rules::bury(caller, id));
        }
    }

    /// The passes, with what is left of the lessons between their accesses, until one finds nothing
    /// to do; then the end of learning.
    fn finish(&self, mut rest: VecDeque<Lesson>) {
        loop {
            self.changes.set(0);
            for id in self.in_stage(|stage| stage != Stage::Gone) {
                // It can be gone by now: then the iterator does not come to it.
                if self.stage(id) != Stage::Gone {
                    let between = rest.len().min(3);
                    self.meanwhile.replace(rest.drain(..between).collect());
                    learning::visit(self, id);
                    self.meanwhile.take();
                }
            }
            if self.changes.get() == 0 && rest.is_empty() {
                break;
            }
        }
        self.is_learning.set(false);
        self.store.sweep_all();
        while let Some(id) = self
            .in_stage(|stage| stage != Stage::Running && stage != Stage::Gone)
            .first()
        {
            self.step(*id);
        }
    }

    /// The true creators of `id`, nearest first.
    fn ancestors(&self, id: ProcessId) -> Vec<ProcessId> {
        let creators = self.creators.borrow();
        let above = |at: &ProcessId| creators.get(at).copied();
        std::iter::successors(above(&id), above).collect()
    }

    /// What the records say is true, and for every living process it is all that there is to say of
    /// the living above it, unless its line is open. Whether any is.
    fn check(&self) -> bool {
        let records = self.store.records();
        let mut tidied = records.clone();
        tidy(&mut tidied);
        assert_eq!(records, tidied, "no record without need, counted exactly");
        for (id, link) in &records {
            assert!(
                link.creator.is_none() || self.ancestors(*id).contains(&link.creator),
                "{id:?} has a wrong creator: {link:?}"
            );
        }
        let mut is_open = false;
        for id in self.in_stage(|stage| stage == Stage::Running) {
            let (line, last) = line_above(&records, id);
            if matches!(last, CREATOR_DUE | ANCESTOR_DUE) {
                is_open = true;
                continue;
            }
            for above in self.ancestors(id) {
                assert!(
                    self.stage(above) != Stage::Running || line.contains(&above),
                    "{id:?} has lost {above:?}: {line:?}"
                );
            }
        }
        is_open
    }

    /// With the last process goes the last record.
    fn all_die(&self) {
        for id in self.in_stage(|stage| stage == Stage::Running) {
            self.mark_dead(&id);
        }
        let left = self.store.records();
        assert!(
            left.values()
                .all(|link| link.state == DEAD && link.references == 0),
            "everything has died: {left:?}"
        );
        self.store.sweep_all();
        assert_eq!(self.store.records(), Records::new());
    }

    /// Dying processes in a row, at most, when the first hook was attached.
    fn dying_in_a_row(&self) -> usize {
        let row = |id| {
            let parent = |at: &ProcessId| self.tasks.borrow()[at].parent;
            let is_dying = |at: &ProcessId| self.stage(*at) == Stage::Leaving;
            std::iter::successors(parent(&id), parent)
                .take_while(is_dying)
                .count()
        };
        self.all().map(row).max().unwrap_or(0)
    }
}

/// The records above `id`, and what the last of them says of its creator.
fn line_above(records: &Records, id: ProcessId) -> (BTreeSet<ProcessId>, u64) {
    let mut above = BTreeSet::new();
    let mut link = records.get(&id).expect("the living have records");
    while let Some(next) = records.get(&link.creator) {
        assert!(above.insert(link.creator), "a circle above {id:?}");
        link = next;
    }
    (above, link.holds_creator)
}

fn lessons(siblings: bool) -> impl Strategy<Value = VecDeque<Lesson>> {
    let sibling = if siblings {
        prop::bool::weighted(0.2).boxed()
    } else {
        Just(false).boxed()
    };
    let lesson = prop_oneof![
        4 => (pick(), sibling).prop_map(|(pick, sibling)| Lesson::Fork(pick, sibling)),
        4 => pick().prop_map(Lesson::Exit),
        8 => any::<Index>().prop_map(Lesson::Step),
        4 => (any::<Index>(), 0_u8..20).prop_map(|(index, between)| Lesson::Visit(index, between)),
    ];
    proptest::collection::vec_deque(lesson, 0..160)
}

/// Learns a host from beginning to end; whether some line stays open.
fn learn(older: &[Index], dying: &[Index], mut lessons: VecDeque<Lesson>, passes: usize) -> bool {
    let kernel = Kernel::new(older, dying);
    assert!(kernel.dying_in_a_row() < DYING_PARENTS as usize);
    let rest = lessons.split_off(lessons.len().saturating_sub(passes));
    while let Some(lesson) = lessons.pop_front() {
        kernel.take(&lesson, &mut lessons);
    }
    kernel.finish(rest);
    let is_open = kernel.check();
    kernel.all_die();
    is_open
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn learning_finds_all_that_can_be_known(
        older in proptest::collection::vec(any::<Index>(), 0..40),
        dying in proptest::collection::vec(any::<Index>(), 0..12),
        lessons in lessons(false),
        passes in 0_usize..80,
    ) {
        assert!(!learn(&older, &dying, lessons, passes), "a line is open");
    }

    #[test]
    fn a_child_with_its_creators_parent_is_never_put_elsewhere(
        older in proptest::collection::vec(any::<Index>(), 0..40),
        dying in proptest::collection::vec(any::<Index>(), 0..12),
        lessons in lessons(true),
        passes in 0_usize..80,
    ) {
        learn(&older, &dying, lessons, passes);
    }
}

//! The rules of the lineage against a naive model: a store that checks what its callers owe, and a
//! world in which every process knows its true creator for ever. Random histories of fork, exit
//! and reparenting must leave in the store exactly what the model says; nothing here is privileged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use lifemon_ebpf::limits::{CLIMB_STEPS, GHOSTS_IN_A_ROW, RELEASE_STEPS, SPLICES};
use lifemon_ebpf::rules::{self, Descent, Lineage, Link};
use lifemon_ebpf::{DEAD, LIVE, ProcessId};
use proptest::prelude::*;
use proptest::sample::Index;

/// Living processes in a random history: enough to outgrow every limit of the rules.
const LIVING_LIMIT: usize = 100;

type Records = BTreeMap<ProcessId, Link>;

// The store, and what a caller of the rules owes to it.

#[derive(Default)]
struct Store {
    records: Mutex<Records>,
    roots: Mutex<BTreeSet<ProcessId>>,
    overruns: Mutex<u64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run of a rule: a dying process, or a sweep. Each access to the store waits for its turn.
struct Caller<'a> {
    store: &'a Store,
    dying: Option<ProcessId>,
    /// References that this run has to drop, each exactly once.
    owed: RefCell<Vec<ProcessId>>,
    turn: &'a dyn Fn(),
}

impl Lineage for Caller<'_> {
    fn link(&self, id: &ProcessId) -> Option<Link> {
        (self.turn)();
        locked(&self.store.records).get(id).copied()
    }

    fn relink(&self, id: &ProcessId, link: &Link) {
        (self.turn)();
        assert_eq!(
            Some(*id),
            self.dying,
            "only the dying process relinks itself"
        );
        assert!(
            self.owed.borrow().contains(id),
            "relinked without its own reference"
        );
        let mut records = locked(&self.store.records);
        let record = records
            .get_mut(id)
            .expect("the record of the dying process vanished");
        record.creator = link.creator;
        record.holds_creator = link.holds_creator;
        record.elided = link.elided;
    }

    fn unreference(&self, id: &ProcessId) -> Option<u64> {
        (self.turn)();
        let mut owed = self.owed.borrow_mut();
        let at = owed
            .iter()
            .position(|held| held == id)
            .expect("dropped what it does not hold");
        owed.swap_remove(at);
        let mut records = locked(&self.store.records);
        let record = records
            .get_mut(id)
            .expect("a record that was held vanished");
        record.references = record
            .references
            .checked_sub(1)
            .expect("references below zero");
        Some(record.references)
    }

    fn remove(&self, id: &ProcessId) -> bool {
        (self.turn)();
        let mut records = locked(&self.store.records);
        let Some(record) = records.remove(id) else {
            return false;
        };
        assert_eq!(record.state, DEAD, "removed a living process");
        assert_eq!(
            holders(&records, id),
            0,
            "removed a record that another one holds"
        );
        if record.references == 0 {
            self.owed
                .borrow_mut()
                .extend((record.holds_creator != 0).then_some(record.creator));
        } else {
            // Spliced: its reference on its creator has passed to the dying process.
            assert!(
                record.references == 1 && self.dying.is_some(),
                "removed while needed"
            );
            assert!(
                !locked(&self.store.roots).contains(id),
                "spliced a watched root"
            );
        }
        true
    }

    fn is_root(&self, id: &ProcessId) -> bool {
        (self.turn)();
        locked(&self.store.roots).contains(id)
    }

    fn overrun(&self) {
        *locked(&self.store.overruns) += 1;
    }
}

impl Store {
    fn records(&self) -> Records {
        locked(&self.records).clone()
    }

    fn insert(&self, id: ProcessId, creator: ProcessId, holds_creator: u64) {
        let link = Link {
            creator,
            references: 1,
            state: LIVE,
            holds_creator,
            elided: 0,
        };
        assert!(
            locked(&self.records).insert(id, link).is_none(),
            "an identity came back"
        );
    }

    fn reference(&self, id: &ProcessId) {
        locked(&self.records)
            .get_mut(id)
            .expect("no such record")
            .references += 1;
    }

    fn mark_dead(&self, id: &ProcessId) {
        locked(&self.records)
            .get_mut(id)
            .expect("a living process has a record")
            .state = DEAD;
    }

    /// Runs a rule for `dying`, or for nobody, and sees that it pays what it owes.
    fn run<T>(
        &self,
        dying: Option<ProcessId>,
        turn: &dyn Fn(),
        rule: impl FnOnce(&Caller<'_>) -> T,
    ) -> T {
        let owed = RefCell::new(dying.into_iter().collect());
        let caller = Caller {
            store: self,
            dying,
            owed,
            turn,
        };
        let result = rule(&caller);
        let owed = caller.owed.into_inner();
        assert!(
            owed.is_empty(),
            "references that nobody drops any more: {owed:?}"
        );
        result
    }

    /// What the sweeps of the next commands do, until nothing is left to do; how many runs.
    fn sweep_all(&self) -> usize {
        let mut runs = 0;
        loop {
            let records = self.records();
            let idle = |link: &Link| link.state == DEAD && link.references == 0;
            let found: Vec<_> = records.iter().filter(|(_, link)| idle(link)).collect();
            if found.is_empty() {
                return runs;
            }
            for (id, _) in found {
                self.run(None, &|| {}, |caller| rules::sweep(caller, id));
                runs += 1;
            }
        }
    }
}

fn holders(records: &Records, id: &ProcessId) -> u64 {
    records
        .values()
        .filter(|link| link.holds_creator != 0 && link.creator == *id)
        .count() as u64
}

// The naive model.

/// Drops every record that no living process needs, and counts the references afresh.
fn tidy(records: &mut Records) {
    let mut needed = BTreeSet::new();
    for (id, link) in records.iter().filter(|(_, link)| link.state == LIVE) {
        let (mut at, mut link) = (*id, link);
        while needed.insert(at) && link.holds_creator != 0 {
            at = link.creator;
            link = records.get(&at).expect("a held creator has a record");
        }
    }
    records.retain(|id, _| needed.contains(id));
    let mut counts = BTreeMap::<_, u64>::new();
    for link in records.values().filter(|link| link.holds_creator != 0) {
        *counts.entry(link.creator).or_default() += 1;
    }
    for (id, link) in records {
        link.references = u64::from(link.state == LIVE) + counts.get(id).unwrap_or(&0);
    }
}

/// Ghosts above `id` that nothing but `id` needs, nearest first.
fn row_above(records: &Records, id: &ProcessId) -> Vec<ProcessId> {
    let mut row = Vec::new();
    let mut link = records[id];
    while link.holds_creator != 0 {
        let above = records[&link.creator];
        if above.state == LIVE || above.references != 1 {
            break;
        }
        row.push(link.creator);
        link = above;
    }
    row
}

/// What one death makes of the records: of a row above it of more than [`GHOSTS_IN_A_ROW`] the
/// nearest go, at most [`SPLICES`] and none from a watched root on; and what nobody needs goes.
fn after_death(mut records: Records, roots: &BTreeSet<ProcessId>, id: &ProcessId) -> Records {
    if records[id].references > 1 {
        let row = row_above(&records, id);
        let excess = row
            .len()
            .saturating_sub(GHOSTS_IN_A_ROW as usize)
            .min(SPLICES as usize);
        for ghost in row
            .iter()
            .take(excess)
            .take_while(|ghost| !roots.contains(ghost))
        {
            let above = records.remove(ghost).expect("it is in the row");
            let link = records.get_mut(id).expect("it is dying");
            link.creator = above.creator;
            link.holds_creator = above.holds_creator;
            link.elided += above.elided + 1;
        }
    }
    records.get_mut(id).expect("it is dying").state = DEAD;
    tidy(&mut records);
    records
}

/// Every process that ever was, with its true creator.
#[derive(Default)]
struct World {
    creators: BTreeMap<ProcessId, ProcessId>,
    /// Oldest first.
    alive: Vec<ProcessId>,
}

impl World {
    fn create(&mut self, creator: ProcessId) -> ProcessId {
        let number = self.creators.len() as u32 + 1;
        let id = ProcessId::new(number, u64::from(number) * 10);
        self.creators.insert(id, creator);
        self.alive.push(id);
        id
    }

    /// The true creators of `id`, nearest first.
    fn chain(&self, id: ProcessId) -> impl Iterator<Item = ProcessId> {
        let above = |at: &ProcessId| self.creators.get(at).copied().filter(|id| !id.is_none());
        std::iter::successors(above(&id), move |at| above(at))
    }
}

// Random histories.

/// Which living process.
#[derive(Debug, Clone)]
enum Pick {
    Any(Index),
    Oldest,
    /// The newest, or one of the next ones before it.
    Newest(usize),
}

impl Pick {
    fn of(&self, from: &[ProcessId]) -> Option<ProcessId> {
        let last = from.len().checked_sub(1)?;
        Some(match self {
            Self::Any(index) => from[index.index(from.len())],
            Self::Oldest => from[0],
            Self::Newest(skip) => from[last.saturating_sub(*skip)],
        })
    }
}

#[derive(Debug, Clone)]
enum Step {
    Fork(Pick),
    Exit(Pick),
    /// A child, then the exit of its creator: one generation of a chain.
    Pass,
    /// Watches a process or ghost, or stops to watch it.
    Watch(Index),
    Sweep(Index),
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        3 => any::<Index>().prop_map(Pick::Any),
        1 => Just(Pick::Oldest),
        3 => (0_usize..3).prop_map(Pick::Newest),
    ]
}

/// One step many times in a row: so chains and bottom-up deaths come out long.
fn history() -> impl Strategy<Value = Vec<(Step, u8)>> {
    let once = |step: BoxedStrategy<Step>| (step, Just(1_u8)).boxed();
    let step = prop_oneof![
        6 => (pick().prop_map(Step::Fork), 1_u8..90).boxed(),
        6 => (pick().prop_map(Step::Exit), 1_u8..90).boxed(),
        2 => (Just(Step::Pass), 1_u8..60).boxed(),
        1 => once(any::<Index>().prop_map(Step::Watch).boxed()),
        1 => once(any::<Index>().prop_map(Step::Sweep).boxed()),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The store and the world side by side.
#[derive(Default)]
struct Host {
    store: Store,
    world: World,
    /// Links that were found true.
    proven: BTreeMap<ProcessId, (ProcessId, u64)>,
}

impl Host {
    fn roots(&self) -> BTreeSet<ProcessId> {
        locked(&self.store.roots).clone()
    }

    fn first(&mut self) -> ProcessId {
        let id = self.world.create(ProcessId::NONE);
        self.store.insert(id, ProcessId::NONE, 0);
        id
    }

    fn fork(&mut self, creator: ProcessId) -> ProcessId {
        let id = self.world.create(creator);
        self.store.reference(&creator);
        self.store.insert(id, creator, 1);
        id
    }

    /// A chain of living processes, each created by the one before.
    fn chain(&mut self, length: usize) -> Vec<ProcessId> {
        let mut chain = vec![self.first()];
        while chain.len() < length {
            chain.push(self.fork(chain[chain.len() - 1]));
        }
        chain
    }

    fn exit(&mut self, id: ProcessId) {
        self.world.alive.retain(|living| *living != id);
        self.store.mark_dead(&id);
        self.store
            .run(Some(id), &|| {}, |caller| rules::bury(caller, &id));
    }

    /// As [`Host::exit`]; the store must be what the model makes of it.
    fn exit_checked(&mut self, id: ProcessId) {
        let expected = after_death(self.store.records(), &self.roots(), &id);
        let overruns = *locked(&self.store.overruns);
        self.exit(id);
        if *locked(&self.store.overruns) > overruns {
            self.store.sweep_all();
        }
        assert_eq!(self.store.records(), expected, "after the death of {id:?}");
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Fork(pick) if self.world.alive.len() < LIVING_LIMIT => {
                match pick.of(&self.world.alive) {
                    Some(creator) => self.fork(creator),
                    None => self.first(),
                };
            }
            Step::Fork(_) => {}
            Step::Exit(pick) => {
                if let Some(id) = pick.of(&self.world.alive) {
                    self.exit_checked(id);
                }
            }
            Step::Pass => {
                if let Some(id) = Pick::Newest(0).of(&self.world.alive) {
                    self.fork(id);
                    self.exit_checked(id);
                }
            }
            Step::Watch(index) => {
                if let Some(id) = self.any_record(*index) {
                    let mut roots = locked(&self.store.roots);
                    if !roots.remove(&id) {
                        roots.insert(id);
                    }
                }
            }
            Step::Sweep(index) => {
                let before = self.store.records();
                let id = self
                    .any_record(*index)
                    .unwrap_or(ProcessId::new(u32::MAX, 1));
                self.store
                    .run(None, &|| {}, |caller| rules::sweep(caller, &id));
                assert_eq!(
                    self.store.records(),
                    before,
                    "a sweep removed what is needed"
                );
            }
        }
    }

    fn any_record(&self, index: Index) -> Option<ProcessId> {
        let records = locked(&self.store.records);
        let ids: Vec<_> = records.keys().collect();
        (!ids.is_empty()).then(|| *ids[index.index(ids.len())])
    }

    /// What holds after every step.
    fn check(&mut self) {
        let records = self.store.records();
        let mut alive: Vec<_> = self.world.alive.clone();
        alive.sort_unstable();
        let live = records.iter().filter(|(_, link)| link.state == LIVE);
        let live: Vec<_> = live.map(|(id, _)| *id).collect();
        assert_eq!(
            live, alive,
            "the living, and only they, have a living record"
        );
        let mut tidied = records.clone();
        tidy(&mut tidied);
        assert_eq!(
            records, tidied,
            "no record without need, and references counted exactly"
        );
        for (id, link) in &records {
            self.check_link(*id, link);
        }
    }

    /// `creator` is a true creator of `id`, and `elided` counts exactly those between. So what
    /// following the links gives is a part of the true chain, and never another process.
    fn check_link(&mut self, id: ProcessId, link: &Link) {
        if self.proven.get(&id) == Some(&(link.creator, link.elided)) {
            return;
        }
        let real = self.world.chain(id).nth(link.elided as usize);
        assert_eq!(
            real.unwrap_or(ProcessId::NONE),
            link.creator,
            "{id:?} has a wrong creator"
        );
        self.proven.insert(id, (link.creator, link.elided));
    }

    /// Climbing gives exactly the descendants; it gives up only beyond [`CLIMB_STEPS`] records.
    fn check_climbs(&self) {
        let records = self.store.records();
        for root in self.roots() {
            for id in &self.world.alive {
                let climbed = |caller: &Caller<'_>| rules::climb(caller, id, |at| *at == root);
                let found = self.store.run(None, &|| {}, climbed);
                let above = |at: &ProcessId| records.get(at).map(|link| link.creator);
                let path = std::iter::successors(Some(*id), above).filter(|id| !id.is_none());
                let path: Vec<_> = path.collect();
                let place = path.iter().position(|at| *at == root);
                let belongs = *id == root || self.world.chain(*id).any(|at| at == root);
                assert_eq!(place.is_some(), belongs, "{root:?} is watched above {id:?}");
                let expected = match place {
                    Some(place) if place < CLIMB_STEPS as usize => Descent::Inside,
                    None if path.len() <= CLIMB_STEPS as usize => Descent::Outside,
                    _ => Descent::Unsettled,
                };
                assert_eq!(found, expected, "whether {id:?} descends from {root:?}");
            }
        }
    }

    fn all_die(&mut self) {
        while let Some(id) = self.world.alive.last().copied() {
            self.exit_checked(id);
        }
        assert_eq!(self.store.records(), Records::new(), "everything has died");
    }

    fn ghosts(&self) -> usize {
        locked(&self.store.records)
            .values()
            .filter(|link| link.state == DEAD)
            .count()
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn every_history_leaves_what_the_model_says(history in history()) {
        let mut host = Host::default();
        for (step, times) in &history {
            for _ in 0..*times {
                host.take(step);
                host.check();
            }
            host.check_climbs();
        }
        host.all_die();
    }
}

// The limits, one by one.

#[test]
fn a_chain_of_ten_thousand_generations_keeps_few_ghosts_and_the_oldest() {
    let mut host = Host::default();
    let mut last = host.first();
    for _ in 0..10_000 {
        let next = host.fork(last);
        host.exit(last);
        last = next;
        assert!(host.ghosts() <= GHOSTS_IN_A_ROW as usize + 1);
    }
    host.check();
    let oldest: Vec<_> = locked(&host.store.records)
        .keys()
        .take(8)
        .map(|id| id.pid)
        .collect();
    assert_eq!(oldest, [1, 2, 3, 4, 5, 6, 7, 8]);
    host.all_die();
}

#[test]
fn a_watched_root_in_a_long_chain_stays_at_its_place() {
    let mut host = Host::default();
    let mut last = host.first();
    for generation in 0..1_000 {
        let next = host.fork(last);
        if generation == 500 {
            locked(&host.store.roots).insert(last);
        }
        host.exit_checked(last);
        last = next;
    }
    let root = *host.roots().first().expect("one is watched");
    assert!(host.store.records().contains_key(&root));
    // The oldest, the root, and the last one that died.
    assert_eq!(host.ghosts(), GHOSTS_IN_A_ROW as usize + 2);
    host.check();
    host.check_climbs();
}

#[test]
fn a_row_left_by_deaths_from_below_is_finished_by_later_deaths() {
    let mut host = Host::default();
    let chain = host.chain(200);
    let (last, above) = chain.split_last().expect("it is long");
    for id in above.iter().rev() {
        host.exit_checked(*id);
    }
    assert_eq!(row_above(&host.store.records(), last).len(), 199);
    let mut last = *last;
    for row in (0..199)
        .step_by(SPLICES as usize - 1)
        .skip(1)
        .map(|less| 199 - less)
    {
        let next = host.fork(last);
        host.exit_checked(last);
        last = next;
        assert_eq!(host.ghosts(), row.max(GHOSTS_IN_A_ROW as usize + 1));
    }
    assert_eq!(host.ghosts(), GHOSTS_IN_A_ROW as usize + 1);
    host.check();
}

#[test]
fn a_row_ends_where_a_creator_is_not_held() {
    let mut host = Host::default();
    let first = host.first();
    host.fork(first);
    host.exit_checked(first);
    // Learnt when its creator was dead.
    let mut last = host.world.create(first);
    host.store.insert(last, first, 0);
    for _ in 0..4 * GHOSTS_IN_A_ROW {
        let next = host.fork(last);
        host.exit_checked(last);
        last = next;
        host.check();
    }
    host.all_die();
}

#[test]
fn a_climb_settles_within_its_limit() {
    let mut host = Host::default();
    let stranger = host.first();
    let chain = host.chain(CLIMB_STEPS as usize + 3);
    locked(&host.store.roots).extend([stranger, chain[0], chain[1], chain[2], chain[3]]);
    host.check_climbs();
}

/// A row of `ghosts` dead creators above one living process, which then dies.
fn release_of(ghosts: usize) -> Host {
    let mut host = Host::default();
    let chain = host.chain(ghosts + 1);
    for id in chain.iter().rev().skip(1) {
        host.exit(*id);
    }
    host.exit(chain[ghosts]);
    host
}

#[test]
fn a_death_may_remove_as_many_records_as_its_limit() {
    let host = release_of(RELEASE_STEPS as usize - 1);
    assert_eq!(*locked(&host.store.overruns), 0);
    assert_eq!(host.store.records(), Records::new());
}

#[test]
fn what_an_overrun_leaves_is_found_by_the_sweep() {
    for ghosts in [RELEASE_STEPS, RELEASE_STEPS + 1, 3 * RELEASE_STEPS, 1_000] {
        let host = release_of(ghosts as usize);
        assert_eq!(*locked(&host.store.overruns), 1);
        let left = ghosts + 1 - RELEASE_STEPS;
        assert_eq!(host.store.records().len(), left as usize);
        let runs = host.store.sweep_all();
        assert!(
            runs <= left.div_ceil(RELEASE_STEPS) as usize,
            "{runs} sweeps"
        );
        assert_eq!(host.store.records(), Records::new(), "{ghosts} ghosts");
    }
}

// Deaths at the same moment: any order of single accesses to the store.

/// Lets one thread at a time do one access, in the order of a schedule.
struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

struct TurnState {
    waiting: Vec<bool>,
    done: Vec<bool>,
    now: Option<usize>,
    schedule: std::vec::IntoIter<Index>,
}

impl Turns {
    fn new(threads: usize, schedule: Vec<Index>) -> Self {
        let (waiting, done) = (vec![false; threads], vec![false; threads]);
        let state = TurnState {
            waiting,
            done,
            now: None,
            schedule: schedule.into_iter(),
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Waits until everybody waits or is done, and it is the turn of `thread`.
    fn wait(&self, thread: usize) {
        let mut state = locked(&self.state);
        state.waiting[thread] = true;
        self.choose(&mut state);
        while state.now != Some(thread) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.now = None;
        state.waiting[thread] = false;
    }

    fn choose(&self, state: &mut TurnState) {
        let threads = 0..state.done.len();
        let open: Vec<_> = threads.filter(|thread| !state.done[*thread]).collect();
        if !open.is_empty() && open.iter().all(|thread| state.waiting[*thread]) {
            let at = state
                .schedule
                .next()
                .map_or(0, |index| index.index(open.len()));
            state.now = Some(open[at]);
            self.changed.notify_all();
        }
    }
}

/// Says that a thread is done, also when it panics.
struct Done<'a>(&'a Turns, usize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.0.state);
        state.done[self.1] = true;
        self.0.choose(&mut state);
    }
}

#[derive(Debug, Clone)]
struct Moment {
    /// Living processes above those that die.
    above: usize,
    /// How many of them are ghosts by then, from the last one up.
    ghosts: usize,
    /// Creators of the younger processes, each among the last of the chain and those before it.
    young: Vec<Index>,
    victims: Vec<Index>,
    survivor: Index,
    schedule: Vec<Index>,
}

fn moment() -> impl Strategy<Value = Moment> {
    let indices = |size| proptest::collection::vec(any::<Index>(), size);
    (
        5_usize..14,
        5_usize..16,
        indices(1..5),
        indices(1..5),
        any::<Index>(),
        indices(300..301),
    )
        .prop_map(
            |(above, ghosts, young, victims, survivor, schedule)| Moment {
                above,
                ghosts,
                young,
                victims,
                survivor,
                schedule,
            },
        )
}

impl Moment {
    /// The host before the deaths, and the processes that can take part in them.
    fn prepare(&self) -> (Host, Vec<ProcessId>) {
        let mut host = Host::default();
        let chain = host.chain(self.above + 1);
        let mut young = vec![chain[self.above]];
        for creator in &self.young {
            // Mostly a line, so that creator and child die together.
            let at = young.len() - 1 - creator.index(young.len()) / 2;
            young.push(host.fork(young[at]));
        }
        for id in chain[..self.above].iter().rev().take(self.ghosts) {
            host.exit_checked(*id);
        }
        locked(&host.store.roots).insert(chain[0]);
        (host, young)
    }
}

/// The deaths of `victims`, a sweep of every record and a climb from `survivor`, interleaved.
fn at_once(host: &Host, victims: &BTreeSet<ProcessId>, survivor: Option<ProcessId>, turns: &Turns) {
    let store = &host.store;
    let known: Vec<_> = store.records().into_keys().collect();
    let root = *host.roots().first().expect("the first of the chain");
    let (sweeping, climbing) = (victims.len(), victims.len() + 1);
    std::thread::scope(|scope| {
        for (thread, id) in victims.iter().enumerate() {
            scope.spawn(move || {
                let _done = Done(turns, thread);
                turns.wait(thread);
                store.mark_dead(id);
                let turn = || turns.wait(thread);
                store.run(Some(*id), &turn, |caller| rules::bury(caller, id));
            });
        }
        scope.spawn(move || {
            let _done = Done(turns, sweeping);
            let turn = || turns.wait(sweeping);
            for id in &known {
                store.run(None, &turn, |caller| rules::sweep(caller, id));
            }
        });
        scope.spawn(move || {
            let _done = Done(turns, climbing);
            let turn = || turns.wait(climbing);
            let Some(id) = survivor else { return };
            for _ in 0..8 {
                let climbed = |caller: &Caller<'_>| rules::climb(caller, &id, |at| *at == root);
                let found = store.run(None, &turn, climbed);
                assert!(
                    matches!(found, Descent::Inside | Descent::Unsettled),
                    "{found:?}"
                );
            }
        });
    });
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn deaths_at_the_same_moment_leave_what_is_needed(moment in moment()) {
        let (mut host, young) = moment.prepare();
        let victims: BTreeSet<_> =
            moment.victims.iter().map(|index| young[index.index(young.len())]).collect();
        host.world.alive.retain(|id| !victims.contains(id));
        let survivors: Vec<_> = young.iter().filter(|id| !victims.contains(id)).collect();
        let survivor =
            (!survivors.is_empty()).then(|| *survivors[moment.survivor.index(survivors.len())]);
        let turns = Turns::new(victims.len() + 2, moment.schedule.clone());
        at_once(&host, &victims, survivor, &turns);
        host.check();
        host.check_climbs();
        host.all_die();
    }
}

// Learning: processes older than tracking, with the parent that was found as creator.

#[derive(Debug, Clone)]
enum Lesson {
    Fork(Pick),
    Exit(Pick),
    /// Children of the dead get another parent.
    Reparent,
    /// The seed pass comes to a process.
    Seed(Pick),
    /// The link pass comes to a process.
    Link(Pick),
}

fn lessons() -> impl Strategy<Value = Vec<Lesson>> {
    let lesson = prop_oneof![
        3 => pick().prop_map(Lesson::Fork),
        3 => pick().prop_map(Lesson::Exit),
        1 => Just(Lesson::Reparent),
        4 => pick().prop_map(Lesson::Seed),
        2 => pick().prop_map(Lesson::Link),
    ];
    proptest::collection::vec(lesson, 0..120)
}

/// Learns a host on which processes live, fork and die meanwhile. `expected` is what the store
/// would hold if no reference were ever counted.
struct Learner {
    host: Host,
    parents: BTreeMap<ProcessId, ProcessId>,
    inferred: BTreeSet<ProcessId>,
    expected: Records,
}

impl Learner {
    /// `creators` are those of the processes that are older than tracking.
    fn new(creators: &[Index]) -> Self {
        let mut world = World::default();
        world.create(ProcessId::NONE);
        let mut parents = BTreeMap::new();
        for creator in creators {
            let creator = world.alive[creator.index(world.alive.len())];
            parents.insert(world.create(creator), creator);
        }
        let host = Host {
            world,
            ..Host::default()
        };
        Self {
            host,
            parents,
            inferred: BTreeSet::new(),
            expected: Records::new(),
        }
    }

    fn init(&self) -> ProcessId {
        *self.host.world.creators.keys().next().expect("the first")
    }

    fn insert(&mut self, id: ProcessId, creator: ProcessId, holds_creator: u64) {
        self.host.store.insert(id, creator, holds_creator);
        let link = self.host.store.records()[&id];
        self.expected.insert(id, link);
    }

    fn seed(&mut self, id: ProcessId) {
        if self.expected.contains_key(&id) {
            return;
        }
        let parent = self.parents.get(&id).copied().unwrap_or(ProcessId::NONE);
        // All that anybody can know from now on.
        self.host.world.creators.insert(id, parent);
        self.inferred.insert(id);
        self.insert(id, parent, 0);
    }

    fn link(&mut self, id: ProcessId) {
        let Some(link) = self.expected.get(&id).copied() else {
            return;
        };
        if !self.inferred.contains(&id) || link.holds_creator != 0 {
            return;
        }
        if self.expected.contains_key(&link.creator) {
            self.host.store.reference(&link.creator);
            let mut records = locked(&self.host.store.records);
            for records in [&mut *records, &mut self.expected] {
                records.get_mut(&id).expect("it is recorded").holds_creator = 1;
            }
        }
    }

    fn fork(&mut self, creator: ProcessId) {
        self.seed(creator);
        let id = self.host.world.create(creator);
        self.parents.insert(id, creator);
        self.host.store.reference(&creator);
        self.insert(id, creator, 1);
    }

    fn exit(&mut self, id: ProcessId) {
        self.host.world.alive.retain(|living| *living != id);
        let Some(link) = self.expected.get_mut(&id) else {
            return;
        };
        link.state = DEAD;
        self.host.store.mark_dead(&id);
        self.host
            .store
            .run(Some(id), &|| {}, |caller| caller.unreference(&id));
    }

    fn reparent(&mut self) {
        let init = self.init();
        let alive = &self.host.world.alive;
        for parent in self
            .parents
            .values_mut()
            .filter(|parent| !alive.contains(parent))
        {
            *parent = init;
        }
    }

    fn take(&mut self, lesson: &Lesson) {
        let alive = &self.host.world.alive;
        match lesson {
            Lesson::Fork(pick) => pick.of(alive).into_iter().for_each(|id| self.fork(id)),
            Lesson::Exit(pick) => pick
                .of(&alive[1..])
                .into_iter()
                .for_each(|id| self.exit(id)),
            Lesson::Reparent => self.reparent(),
            Lesson::Seed(pick) => pick.of(alive).into_iter().for_each(|id| self.seed(id)),
            Lesson::Link(pick) => pick.of(alive).into_iter().for_each(|id| self.link(id)),
        }
    }

    /// The rest of both passes, then the end of learning.
    fn finish(mut self) -> Host {
        for id in self.host.world.alive.clone() {
            self.seed(id);
        }
        for id in self.host.world.alive.clone() {
            self.link(id);
        }
        self.host.store.sweep_all();
        tidy(&mut self.expected);
        assert_eq!(self.host.store.records(), self.expected, "after learning");
        self.host
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn learning_leaves_what_the_model_says(
        older in proptest::collection::vec(any::<Index>(), 0..40),
        lessons in lessons(),
        history in proptest::collection::vec((pick(), pick()), 0..100),
    ) {
        let mut learner = Learner::new(&older);
        for lesson in &lessons {
            learner.take(lesson);
        }
        let mut host = learner.finish();
        host.check();
        for (forks, exits) in history {
            host.take(&Step::Fork(forks));
            host.take(&Step::Exit(exits));
            host.check();
        }
        host.all_die();
    }
}

//! Random histories of fork, exit, watching and sweeping: after every step the store holds exactly
//! what the model says, and following the links finds exactly the descendants.

use std::collections::{BTreeMap, BTreeSet};

use lifemon_ebpf::rules::{self, Link};
use lifemon_ebpf::{DEAD, HELD, LIVE, NOT_HELD, ProcessId};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{World, after_death, tidy};
use crate::store::{Records, Store, locked};

/// Living processes in a random history: enough to outgrow every limit of the rules.
const LIVING_LIMIT: usize = 100;

/// Which living process.
#[derive(Debug, Clone)]
pub(crate) enum Pick {
    Any(Index),
    Oldest,
    /// The newest, or one of the next ones before it.
    Newest(usize),
}

impl Pick {
    pub(crate) fn of(&self, from: &[ProcessId]) -> Option<ProcessId> {
        let last = from.len().checked_sub(1)?;
        Some(match self {
            Self::Any(index) => from[index.index(from.len())],
            Self::Oldest => from[0],
            Self::Newest(skip) => from[last.saturating_sub(*skip)],
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Fork(Pick),
    Exit(Pick),
    /// A child, then the exit of its creator: one generation of a chain.
    Pass,
    /// Watches a process or ghost, or stops to watch it.
    Watch(Index),
    Sweep(Index),
}

pub(crate) fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        3 => any::<Index>().prop_map(Pick::Any),
        1 => Just(Pick::Oldest),
        3 => (0_usize..3).prop_map(Pick::Newest),
    ]
}

/// One step many times in a row: so chains and bottom-up deaths come out long.
pub(crate) fn history() -> impl Strategy<Value = Vec<(Step, u8)>> {
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
pub(crate) struct Host {
    pub(crate) store: Store,
    pub(crate) world: World,
    /// Links that were found true.
    pub(crate) proven: BTreeMap<ProcessId, (ProcessId, u64)>,
}

impl Host {
    pub(crate) fn roots(&self) -> BTreeSet<ProcessId> {
        locked(&self.store.roots).clone()
    }

    pub(crate) fn first(&mut self) -> ProcessId {
        let id = self.world.create(ProcessId::NONE);
        self.store.insert(id, ProcessId::NONE, NOT_HELD);
        id
    }

    pub(crate) fn fork(&mut self, creator: ProcessId) -> ProcessId {
        let id = self.world.create(creator);
        self.store.reference(&creator, &id);
        self.store.insert(id, creator, HELD);
        id
    }

    /// A chain of living processes, each created by the one before.
    pub(crate) fn chain(&mut self, length: usize) -> Vec<ProcessId> {
        let mut chain = vec![self.first()];
        while chain.len() < length {
            chain.push(self.fork(chain[chain.len() - 1]));
        }
        chain
    }

    pub(crate) fn exit(&mut self, id: ProcessId) {
        self.world.alive.retain(|living| *living != id);
        self.store.mark_dead(&id);
        self.store
            .run(Some(id), &|| {}, |caller| rules::bury(caller, &id));
    }

    /// As [`Host::exit`]; the store must be what the model makes of it.
    pub(crate) fn exit_checked(&mut self, id: ProcessId) {
        let expected = after_death(self.store.records(), &self.roots(), &id);
        let overruns = *locked(&self.store.overruns);
        self.exit(id);
        if *locked(&self.store.overruns) > overruns {
            self.store.sweep_all();
        }
        assert_eq!(self.store.records(), expected, "after the death of {id:?}");
    }

    pub(crate) fn take(&mut self, step: &Step) {
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

    pub(crate) fn any_record(&self, index: Index) -> Option<ProcessId> {
        let records = locked(&self.store.records);
        let ids: Vec<_> = records.keys().collect();
        (!ids.is_empty()).then(|| *ids[index.index(ids.len())])
    }

    /// What holds after every step.
    pub(crate) fn check(&mut self) {
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
    pub(crate) fn check_link(&mut self, id: ProcessId, link: &Link) {
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

    /// Following the links gives exactly the descendants of whoever is watched.
    pub(crate) fn check_descendants(&self) {
        let records = self.store.records();
        for root in self.roots() {
            for id in &self.world.alive {
                let above = |at: &ProcessId| records.get(at).map(|link| link.creator);
                let mut path = std::iter::successors(Some(*id), above).filter(|id| !id.is_none());
                let found = path.any(|at| at == root);
                let belongs = *id == root || self.world.chain(*id).any(|at| at == root);
                assert_eq!(found, belongs, "{root:?} is watched above {id:?}");
            }
        }
    }

    pub(crate) fn all_die(&mut self) {
        while let Some(id) = self.world.alive.last().copied() {
            self.exit_checked(id);
        }
        assert_eq!(self.store.records(), Records::new(), "everything has died");
    }

    pub(crate) fn ghosts(&self) -> usize {
        locked(&self.store.records)
            .values()
            .filter(|link| link.state == DEAD)
            .count()
    }
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
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
            host.check_descendants();
        }
        host.all_die();
    }
}

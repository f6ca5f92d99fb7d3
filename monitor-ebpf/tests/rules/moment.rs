//! Deaths at the same moment, a sweep, the shortening of rows and a reading of the line above a
//! survivor: any order of single accesses to the store.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use lifemon_ebpf::ProcessId;
use lifemon_ebpf::rules::{self, Lineage as _};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::history::{Host, config};
use crate::store::{Caller, locked};

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

/// The deaths of `victims`, a sweep and a shortening of every record, and a walk up from
/// `survivor`, interleaved.
fn at_once(host: &Host, victims: &BTreeSet<ProcessId>, survivor: Option<ProcessId>, turns: &Turns) {
    let store = &host.store;
    let known: Vec<_> = store.records().into_keys().collect();
    let root = *host.roots().first().expect("the first of the chain");
    let sweeping = victims.len();
    let (climbing, shortening) = (sweeping + 1, sweeping + 2);
    let known = &known;
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
            for id in known {
                store.run(None, &turn, |caller| rules::sweep(caller, id));
            }
        });
        scope.spawn(move || {
            let _done = Done(turns, shortening);
            let turn = || turns.wait(shortening);
            for id in known {
                store.run(None, &turn, |caller| rules::compact(caller, id));
            }
        });
        scope.spawn(move || {
            let _done = Done(turns, climbing);
            let turn = || turns.wait(climbing);
            let Some(id) = survivor else { return };
            for _ in 0..8 {
                store.run(None, &turn, |caller| walk_up(caller, id, root));
            }
        });
    });
}

/// Walks from a living process up to the root as userspace does: where a creator is missing, the
/// record below it is read again, and has another one by then.
fn walk_up(caller: &Caller<'_>, survivor: ProcessId, root: ProcessId) {
    let mut at = survivor;
    for _ in 0..1_000 {
        if at == root {
            return;
        }
        let link = caller.link(&at);
        let Some(link) = link else {
            // Somebody below has been spliced over it since: begin again.
            at = survivor;
            continue;
        };
        assert!(!link.creator.is_none(), "the walk has left the tree");
        at = link.creator;
    }
    panic!("the walk does not settle");
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
        let turns = Turns::new(victims.len() + 3, moment.schedule.clone());
        at_once(&host, &victims, survivor, &turns);
        // What somebody else had claimed was left to the sweep, and counted.
        let left = host.store.sweep_all();
        assert!(left == 0 || *locked(&host.store.overruns) > 0, "nobody was told");
        host.check();
        host.check_descendants();
        host.all_die();
    }
}

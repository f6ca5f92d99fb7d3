//! A store of records that checks what its callers owe to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lifemon_ebpf::rules::{self, Lineage, Link};
use lifemon_ebpf::{BUSY, DEAD, HELD, Holders, LIVE, ProcessId, TAKEN};

pub(crate) type Records = BTreeMap<ProcessId, Link>;

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) records: Mutex<Records>,
    pub(crate) roots: Mutex<BTreeSet<ProcessId>>,
    pub(crate) overruns: Mutex<u64>,
    /// Records that somebody has claimed.
    claims: Mutex<BTreeMap<ProcessId, u64>>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run of a rule: of a dying process, a sweep, or what shortens a row. Each access to the store
/// waits for its turn.
pub(crate) struct Caller<'a> {
    pub(crate) store: &'a Store,
    /// References that this run has to drop, each exactly once.
    pub(crate) owed: RefCell<Vec<ProcessId>>,
    pub(crate) turn: &'a dyn Fn(),
}

impl Lineage for Caller<'_> {
    fn link(&self, id: &ProcessId) -> Option<Link> {
        (self.turn)();
        locked(&self.store.records).get(id).copied()
    }

    fn claim(&self, id: &ProcessId, claim: u64) -> bool {
        (self.turn)();
        let mut claims = locked(&self.store.claims);
        if !locked(&self.store.records).contains_key(id) || claims.contains_key(id) {
            return false;
        }
        claims.insert(*id, claim);
        true
    }

    fn give_back(&self, id: &ProcessId) {
        (self.turn)();
        let claim = locked(&self.store.claims).remove(id);
        assert!(claim.is_some(), "gave back what it has not claimed");
    }

    fn relink(&self, id: &ProcessId, link: &Link) {
        (self.turn)();
        let claim = locked(&self.store.claims).get(id).copied();
        assert_eq!(claim, Some(BUSY), "relinked without a claim");
        let mut records = locked(&self.store.records);
        let record = records
            .get_mut(id)
            .expect("a record that was claimed vanished");
        record.creator = link.creator;
        record.holds_creator = link.holds_creator;
        record.elided = link.elided;
        record.elided_badly = link.elided_badly;
    }

    fn unreference(&self, id: &ProcessId, by: &ProcessId) -> Option<u64> {
        // As the kernel half does it: in two steps.
        if by != id {
            (self.turn)();
            let mut records = locked(&self.store.records);
            let record = records.get_mut(id);
            count_out(
                &mut record.expect("a record that was held vanished").holders,
                by,
            );
        }
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

    fn pass_on(&self, id: &ProcessId, from: &ProcessId, to: &ProcessId) {
        for half in [true, false] {
            (self.turn)();
            let mut records = locked(&self.store.records);
            let record = records.get_mut(id).expect("a record that is held vanished");
            if half {
                count_in(&mut record.holders, to);
            } else {
                count_out(&mut record.holders, from);
            }
        }
    }

    fn remove(&self, id: &ProcessId) -> bool {
        (self.turn)();
        let mut records = locked(&self.store.records);
        let Some(record) = records.remove(id) else {
            return false;
        };
        let claim = locked(&self.store.claims).remove(id);
        assert_eq!(claim, Some(TAKEN), "removed without a claim");
        assert_eq!(record.state, DEAD, "removed a living process");
        // One that is spliced out is held by the record below alone, until that is linked anew.
        let is_spliced = record.references == 1;
        assert_eq!(
            holders(&records, id),
            u64::from(is_spliced),
            "removed a record that another one holds"
        );
        if record.references == 0 {
            self.owed
                .borrow_mut()
                .extend((record.holds_creator == HELD).then_some(record.creator));
        } else {
            // Spliced: its reference on its creator has passed to the record below.
            assert!(record.references == 1, "removed while needed");
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
    pub(crate) fn records(&self) -> Records {
        locked(&self.records).clone()
    }

    pub(crate) fn insert(&self, id: ProcessId, creator: ProcessId, holds_creator: u64) {
        let link = Link {
            creator,
            references: 1,
            holders: Holders::default(),
            state: LIVE,
            holds_creator,
            elided: 0,
            elided_badly: 0,
            died_badly: 0,
        };
        assert!(
            locked(&self.records).insert(id, link).is_none(),
            "an identity came back"
        );
    }

    pub(crate) fn reference(&self, id: &ProcessId, by: &ProcessId) {
        let mut records = locked(&self.records);
        let record = records.get_mut(id).expect("no such record");
        record.references += 1;
        count_in(&mut record.holders, by);
    }

    pub(crate) fn unreference(&self, id: &ProcessId, by: &ProcessId) {
        let mut records = locked(&self.records);
        let record = records.get_mut(id).expect("it was held");
        record.references -= 1;
        if id != by {
            count_out(&mut record.holders, by);
        }
    }

    pub(crate) fn mark_dead(&self, id: &ProcessId) {
        locked(&self.records)
            .get_mut(id)
            .expect("a living process has a record")
            .state = DEAD;
    }

    /// Runs a rule for `dying`, or for nobody, and sees that it pays what it owes.
    pub(crate) fn run<T>(
        &self,
        dying: Option<ProcessId>,
        turn: &dyn Fn(),
        rule: impl FnOnce(&Caller<'_>) -> T,
    ) -> T {
        let owed = RefCell::new(dying.into_iter().collect());
        let caller = Caller {
            store: self,
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
    pub(crate) fn sweep_all(&self) -> usize {
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

pub(crate) fn count_in(holders: &mut Holders, by: &ProcessId) {
    holders.pids = holders.pids.wrapping_add(u64::from(by.pid));
    holders.starts = holders.starts.wrapping_add(by.start_ns);
}

fn count_out(holders: &mut Holders, by: &ProcessId) {
    holders.pids = holders.pids.wrapping_sub(u64::from(by.pid));
    holders.starts = holders.starts.wrapping_sub(by.start_ns);
}

pub(crate) fn holders(records: &Records, id: &ProcessId) -> u64 {
    records
        .values()
        .filter(|link| link.holds_creator == HELD && link.creator == *id)
        .count() as u64
}

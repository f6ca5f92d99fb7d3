//! Makes good what the kernel half could not do in its place: deaths that went unseen, records that
//! nobody needs any more, and processes that got no record because the map was full or the hook for
//! forks was skipped. Every command does it that opens the pinned tracker, where the counters give
//! a reason to.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use lifemon_ebpf::{DEAD, HELD, LEARNING, ProcessId, Record, limits};

use super::load::{LEARN_PASSES, learn_once};
use super::lock::Patience;
use super::{Error, Tracker, sys};

/// Forks of the host between two looks for rows of ghosts.
const FORKS_BETWEEN: u64 = 256;

/// Records that have to be free before lost processes are learnt again: those that are created
/// meanwhile need some as well.
const ROOM: usize = 64;

/// Returns whether deaths can have gone unseen, after so many exits without a hook and deletions that
/// the kernel refused.
pub(super) const fn is_settling_due(missed_exits: u64, failed_deletes: u64) -> bool {
    missed_exits > 0 || failed_deletes > 0
}

/// Returns whether records can be left that nobody needs, after so many burials that stopped at
/// their limit and deletions that the kernel refused.
pub(super) const fn is_sweep_due(overruns: u64, failed_deletes: u64) -> bool {
    overruns > 0 || failed_deletes > 0
}

impl Tracker {
    /// Makes good what can be made good, as far as the counters say that there is something.
    ///
    /// # Errors
    /// When the lock cannot be taken, a map cannot be accessed or a program cannot run.
    pub fn heal(&mut self) -> Result<(), Error> {
        let failed_deletes = &self.slots.host().failed_deletes;
        let failed = failed_deletes.load(Ordering::SeqCst);
        if is_settling_due(self.missed_exits(), failed) {
            self.settle_all()?;
        }
        let overruns = &self.slots.host().release_overruns;
        let left = overruns.load(Ordering::SeqCst);
        if is_sweep_due(left, failed) {
            self.sweep()?;
            // What was counted before the sweep is done; what comes meanwhile counts on.
            overruns.fetch_sub(left, Ordering::SeqCst);
            failed_deletes.fetch_sub(failed, Ordering::SeqCst);
        }
        let forks = self.host_counters().forks;
        let compacted_at = &self.slots.host().compacted_at;
        let since = forks.saturating_sub(compacted_at.load(Ordering::SeqCst));
        if since > FORKS_BETWEEN || self.host_counters().lost_records > 0 {
            compacted_at.store(forks, Ordering::SeqCst);
            self.compact()?;
        }
        let is_learning = self.slots.host().learning.load(Ordering::SeqCst) != 0;
        if is_learning || self.host_counters().lost_records > 0 || self.missed_forks() > 0 {
            let _lock = self.lock(Patience::FULL)?;
            self.learn_again()?;
        }
        Ok(())
    }

    /// Shortens the rows of ghosts that stand above one record each. Deaths keep them short; what
    /// is left is what a death could not splice: above or below a root that was watched then, or
    /// beside another death at the same moment.
    ///
    /// # Errors
    /// When the lock cannot be taken, the map cannot be read or the program cannot run.
    pub(super) fn compact(&self) -> Result<(), Error> {
        let Some(compact) = &self.compact else {
            return Ok(());
        };
        let _lock = self.lock(Patience::FULL)?;
        let records = self.records_by_id()?;
        for (id, excess) in long_rows(&records) {
            for _ in 0..excess.div_ceil(limits::SPLICES) {
                sys::run_for(compact.as_fd(), &id).map_err(Error::Map)?;
            }
        }
        Ok(())
    }

    /// Removes records that nobody needs, and the ghosts that nobody needs then, until a reading
    /// finds no more of them, or the same ones again: what a death with very many ghosts had to
    /// leave. Returns how many were found.
    ///
    /// One run removes a bounded number: so each ghost of the row above is asked for as well.
    ///
    /// # Errors
    /// When the maps cannot be read or the sweep program cannot run.
    pub fn sweep(&self) -> Result<usize, Error> {
        let mut swept = 0;
        let mut before = HashSet::new();
        loop {
            let records = self.records_by_id()?;
            let left = records
                .iter()
                .filter(|(_, it)| it.state == DEAD && it.references == 0);
            let found: HashSet<_> = left.map(|(id, _)| *id).collect();
            if found.is_empty() || found == before {
                return Ok(swept);
            }
            for id in &found {
                for needless in iter::once(*id).chain(row_above(&records, id)) {
                    sys::run_for(self.sweep.as_fd(), &needless).map_err(Error::Map)?;
                }
            }
            swept += found.len();
            before = found;
        }
    }

    fn records_by_id(&self) -> Result<HashMap<ProcessId, Record>, Error> {
        let records = sys::read_all(self.lineage.as_fd()).map_err(Error::Map)?;
        Ok(records.into_iter().collect())
    }

    /// Learns the living that have no record, and connects those whose creator was lost and has one
    /// now. Under the lock.
    ///
    /// As when tracking starts ([`lifemon_ebpf::learning`]), no record may be removed meanwhile:
    /// the flag is set, and hooks that have not seen it have ended before the first pass. Whoever
    /// dies unrecorded on the way leaves children whose creator stays lost, and that is told.
    fn learn_again(&mut self) -> Result<(), Error> {
        let is_full = self.records_by_id()?.len() + ROOM > self.capacity()? as usize;
        let lost = self.host_counters().lost_records;
        let missed = self.missed_forks();
        let learning = self.slots.host().learning.swap(LEARNING, Ordering::SeqCst);
        let learnt = if is_full {
            Ok(false)
        } else {
            self.pass_until_learnt()
        };
        self.slots.host().learning.store(0, Ordering::SeqCst);
        if is_full && learning == 0 {
            return Ok(());
        }
        // What died since has left its record.
        sys::wait_for_running_programs().map_err(Error::Map)?;
        self.sweep()?;
        if learnt? {
            let host = self.slots.tree(0);
            host.lost_records.fetch_sub(lost, Ordering::SeqCst);
            let learnt = &self.slots.host().learnt_misses;
            learnt.fetch_add(missed, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Runs passes until one finds nothing to learn; returns whether everything fitted.
    fn pass_until_learnt(&mut self) -> Result<bool, Error> {
        sys::wait_for_running_programs().map_err(Error::Map)?;
        for _ in 0..LEARN_PASSES {
            let iterator = self.open_pass("learn")?;
            let found = learn_once(self.pass.at(0), iterator)?;
            if found.failed > 0 {
                return Ok(false);
            }
            if found.inserted == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Returns whoever has a longer row of ghosts above itself than may stay, and by how many.
fn long_rows(records: &HashMap<ProcessId, Record>) -> Vec<(ProcessId, u32)> {
    let bottoms = records.iter().filter(|(_, record)| !is_in_a_row(record));
    let rows = bottoms.map(|(id, _)| (*id, row_above(records, id).count() as u32));
    let long = rows.filter(|(_, length)| *length > limits::GHOSTS_IN_A_ROW);
    long.map(|(id, length)| (id, length - limits::GHOSTS_IN_A_ROW))
        .collect()
}

/// Returns the row of ghosts above a record: each is held by the record below it alone.
fn row_above(
    records: &HashMap<ProcessId, Record>,
    id: &ProcessId,
) -> impl Iterator<Item = ProcessId> {
    let above = |id: &ProcessId| {
        let below = records.get(id).filter(|it| it.holds_creator == HELD)?;
        let above = records.get(&below.creator)?;
        is_in_a_row(above).then_some(below.creator)
    };
    // What is read while it changes may name a circle.
    iter::successors(above(id), move |id| above(id)).take(records.len())
}

fn is_in_a_row(record: &Record) -> bool {
    record.state == DEAD && record.references == 1
}

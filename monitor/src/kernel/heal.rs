//! Makes good what the kernel half could not do in its place: deaths that went unseen, records that
//! nobody needs any more, and processes that got no record because the map was full or the hook for
//! forks was skipped. Every command does it that opens the pinned tracker, where the counters give
//! a reason to.

use std::collections::HashMap;
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

impl Tracker {
    /// Makes good what can be made good, as far as the counters say that there is something.
    ///
    /// # Errors
    /// When the lock cannot be taken, a map cannot be accessed or a program cannot run.
    pub fn heal(&mut self) -> Result<(), Error> {
        let failed_deletes = &self.slots.host().failed_deletes;
        let failed = failed_deletes.load(Ordering::SeqCst);
        if self.missed_exits() > 0 || failed > 0 {
            self.settle_all()?;
        }
        let overruns = &self.slots.host().release_overruns;
        let left = overruns.load(Ordering::SeqCst);
        if left > 0 || failed > 0 {
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

    /// Shortens the rows of ghosts that stand above one record each. A death shortens the row above
    /// itself; what stands above a process that does nothing, or above a branching of ghosts, is
    /// seen by no death.
    ///
    /// # Errors
    /// When the lock cannot be taken, the map cannot be read or the program cannot run.
    pub(super) fn compact(&self) -> Result<(), Error> {
        let _lock = self.lock(Patience::FULL)?;
        let records = sys::read_all::<ProcessId, Record>(self.lineage.as_fd());
        let records: HashMap<_, _> = records.map_err(Error::Map)?.into_iter().collect();
        for (id, excess) in long_rows(&records) {
            for _ in 0..excess.div_ceil(limits::SPLICES) {
                sys::run_for(self.compact.as_fd(), &id).map_err(Error::Map)?;
            }
        }
        Ok(())
    }

    /// Learns the living that have no record, and connects those whose creator was lost and has one
    /// now. Under the lock.
    ///
    /// As when tracking starts ([`lifemon_ebpf::learning`]), no record may be removed meanwhile:
    /// the flag is set, and hooks that have not seen it have ended before the first pass. Whoever
    /// dies unrecorded on the way leaves children whose creator stays lost, and that is told.
    fn learn_again(&mut self) -> Result<(), Error> {
        let records = sys::read_all::<ProcessId, Record>(self.lineage.as_fd());
        let is_full = records.map_err(Error::Map)?.len() + ROOM > self.capacity()? as usize;
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
    let is_in_a_row = |record: &Record| record.state == DEAD && record.references == 1;
    let bottoms = records.iter().filter(|(_, record)| !is_in_a_row(record));
    let rows = bottoms.map(|(id, bottom)| {
        let mut length = 0;
        let mut at = bottom;
        while at.holds_creator == HELD
            && let Some(above) = records.get(&at.creator).filter(|above| is_in_a_row(above))
            && (length as usize) < records.len()
        {
            length += 1;
            at = above;
        }
        (*id, length)
    });
    let long = rows.filter(|(_, length)| *length > limits::GHOSTS_IN_A_ROW);
    long.map(|(id, length)| (id, length - limits::GHOSTS_IN_A_ROW))
        .collect()
}

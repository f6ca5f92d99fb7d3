//! Runs of the hooks that the kernel skipped: how many, and the settling of deaths that were
//! missed.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use lifemon_ebpf::{LIVE, ProcessId, Record};

use super::hooks::STAND_IN;
use super::lock::Patience;
use super::{Error, Tracker, sys};
use crate::proc;

impl Tracker {
    /// Returns the number of forks that were skipped since everybody was learnt: processes that
    /// nobody knows of.
    #[must_use]
    pub fn missed_forks(&self) -> u64 {
        let learnt = self.slots.host().learnt_misses.load(Ordering::SeqCst);
        self.missed("fork").saturating_sub(learnt)
    }

    /// Returns how often the kernel has refused to delete what was there.
    #[must_use]
    pub fn failed_deletes(&self) -> u64 {
        self.slots.host().failed_deletes.load(Ordering::SeqCst)
    }

    /// Returns an upper bound of the exits that may have gone unseen: no more than this, and mostly
    /// none of them. [`Tracker::settle`] finds and recovers them. Where a stand-in is attached as
    /// well, an exit went unseen only if both were skipped for it.
    #[must_use]
    pub fn missed_exits(&self) -> u64 {
        let exit = self.missed("exit");
        let is_attached = self.hooks.iter().any(|(role, _)| *role == STAND_IN);
        if is_attached {
            exit.min(self.missed(STAND_IN))
        } else {
            exit
        }
    }

    fn missed(&self, role: &str) -> u64 {
        let hook = self.hooks.iter().find(|(found, _)| *found == role);
        hook.and_then(|(_, fd)| sys::program_info(fd.as_fd()).ok())
            .map_or(0, |info| info.recursion_misses)
    }

    /// Marks those of `processes` dead that are over although their records say that they live: the
    /// kernel skipped the hook that should have seen them die. How many there were.
    ///
    /// # Errors
    /// When the lock cannot be taken or the program cannot run.
    pub fn settle(&self, processes: &[ProcessId]) -> Result<u64, Error> {
        let over: Vec<_> = processes.iter().filter(|id| proc::is_gone(**id)).collect();
        if over.is_empty() {
            return Ok(0);
        }
        let _lock = self.lock(Patience::FULL)?;
        let mut unseen = 0;
        for id in &over {
            unseen += sys::run_for(self.settle.as_fd(), id).map_err(Error::Map)?;
        }
        Ok(u64::from(unseen))
    }

    /// Does the same for every process of the host.
    ///
    /// # Errors
    /// As [`Tracker::settle`], and when the map cannot be read.
    pub fn settle_all(&self) -> Result<u64, Error> {
        let records = sys::read_all::<ProcessId, Record>(self.lineage.as_fd());
        let records = records.map_err(Error::Map)?.into_iter();
        let live = records.filter(|(_, record)| record.state == LIVE);
        let live: Vec<ProcessId> = live.map(|(id, _)| id).collect();
        self.settle(&live)
    }
}

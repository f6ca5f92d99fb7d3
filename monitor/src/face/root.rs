//! The process that a tree begins with, as a caller names it.

use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::Error;
use crate::kernel::snapshot::Snapshot;
use crate::kill::{KillError, KillRefusal};

/// The root of a tree: by its identity, or by its pid alone.
///
/// A pid means the process that has it now, or the latest one that had it and has living
/// descendants; to [`kill_tree`](crate::kill_tree) neither where it can mean both, and no process
/// that is younger than the call. An identity never means a successor that was given the same pid;
/// its start may be rounded to a clock tick, as that of the reports of [`run`](crate::run) can be.
///
/// ```
/// use lifemon::{ProcessId, Root};
///
/// assert_eq!(Root::from(4200), Root::Pid(4200));
/// let exact = ProcessId::new(4200, 8_123_456_789);
/// assert_eq!(Root::from(exact), Root::Exact(exact));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Root {
    /// The process that has this pid.
    Pid(u32),
    /// Exactly this process.
    Exact(ProcessId),
}

impl From<u32> for Root {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

impl From<ProcessId> for Root {
    fn from(id: ProcessId) -> Self {
        Self::Exact(id)
    }
}

impl Root {
    /// Finds it in a snapshot.
    pub(super) fn find(self, snapshot: &Snapshot) -> Result<ProcessId, Error> {
        match self {
            Self::Pid(pid) => {
                let found = snapshot.live(pid).or_else(|| snapshot.ghost(pid));
                let found = found.map(|(id, _)| *id);
                found.ok_or_else(|| Error::NoProcess(pid.to_string()))
            }
            Self::Exact(id) => snapshot
                .exact(id)
                .ok_or_else(|| Error::NoProcess(format!("{}@{}", id.pid, id.start_ns))),
        }
    }

    /// Finds it to be killed, which was asked for at `begun_ns` since boot. A pid alone is no
    /// process that is younger than that, and none where it was also that of a dead process with
    /// living descendants.
    pub(super) fn find_to_kill(
        self,
        snapshot: &Snapshot,
        begun_ns: u64,
    ) -> Result<ProcessId, KillError> {
        let found = self.find(snapshot)?;
        if matches!(self, Self::Exact(_)) {
            return Ok(found);
        }
        if found.start_ns > begun_ns {
            return Err(KillRefusal::Younger(found).into());
        }
        let ghost = snapshot.ghost(found.pid).map(|(id, _)| *id);
        let has_left = |ghost: &ProcessId| {
            let forest = Forest::new(snapshot.records.iter().copied());
            !forest.living(*ghost).is_empty()
        };
        match ghost.filter(|ghost| *ghost != found).filter(has_left) {
            Some(ghost) => Err(KillRefusal::Ambiguous { now: found, ghost }.into()),
            None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::{DEAD, LIVE, Record};

    use super::*;

    fn snapshot() -> Snapshot {
        let record = |state| Record {
            state,
            ..Record::default()
        };
        Snapshot {
            records: vec![
                (ProcessId::new(7, 70), record(DEAD)),
                (ProcessId::new(7, 77), record(LIVE)),
                (ProcessId::new(8, 90), record(DEAD)),
            ],
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_pid_is_the_living_process_before_a_ghost() {
        let found = |pid: u32| Root::from(pid).find(&snapshot()).ok();
        assert_eq!(found(7), Some(ProcessId::new(7, 77)));
        assert_eq!(found(8), Some(ProcessId::new(8, 90)));
        assert_eq!(found(9), None);
    }

    #[test]
    fn an_identity_never_means_a_successor() {
        let found = |start_ns| Root::from(ProcessId::new(7, start_ns)).find(&snapshot());
        assert_eq!(found(70).unwrap(), ProcessId::new(7, 70));
        assert_eq!(found(71).unwrap_err().to_string(), "no such process: 7@71");
    }

    #[test]
    fn a_pid_alone_is_killed_only_where_it_means_one_process_that_was_there_before() {
        let mut snapshot = snapshot();
        let find = |snapshot: &Snapshot, root: Root, begun_ns| {
            let found = root.find_to_kill(snapshot, begun_ns);
            found.map_err(|error| error.to_string())
        };
        let now = ProcessId::new(7, 77);
        assert_eq!(find(&snapshot, Root::from(7), 77), Ok(now));
        assert_eq!(find(&snapshot, Root::from(now), 76), Ok(now));
        let refused = find(&snapshot, Root::from(7), 76).unwrap_err();
        assert!(
            refused.contains("younger") && refused.contains("7@77"),
            "{refused}"
        );
        let below = Record {
            state: LIVE,
            creator: ProcessId::new(7, 70),
            ..Record::default()
        };
        snapshot.records.push((ProcessId::new(9, 95), below));
        let refused = find(&snapshot, Root::from(7), 99).unwrap_err();
        assert!(
            refused.contains("7@77") && refused.contains("7@70"),
            "{refused}"
        );
        for exact in [now, ProcessId::new(7, 70)] {
            assert_eq!(find(&snapshot, Root::from(exact), 99), Ok(exact));
        }
    }
}

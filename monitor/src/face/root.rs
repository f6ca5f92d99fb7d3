//! The process that a tree begins with, as a caller names it.

use crate::ProcessId;
use crate::kernel::Error;
use crate::kernel::snapshot::Snapshot;

/// The root of a tree: by its identity, or by its pid alone.
///
/// A pid means the process that has it now, or the latest one that had it and has living
/// descendants. An identity never means a successor that was given the same pid; its start may be
/// rounded to a clock tick, as that of the reports of [`run`](crate::run) can be.
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
}

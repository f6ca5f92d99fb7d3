//! A process as the user names it: `PID`, or `PID@START_NS` for exactly that one. Finds out which
//! process it is, and explains why where there is none.

use std::str::FromStr;

use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, Kind};
use crate::process::Process;
use crate::report::out::printable;
use crate::words::count;

use super::NoSuchProcess;

/// A process as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pid: u32,
    start_ns: Option<u64>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pid, start) = match text.split_once('@') {
            Some((pid, start)) => (pid, Some(start)),
            None => (text, None),
        };
        let pid = match pid.parse() {
            Ok(0) => return Err("0 is no process id; give that of the process to watch".to_owned()),
            Ok(pid) if i32::try_from(pid).is_ok() => pid,
            _ => return Err("expected PID or PID@START_NS".to_owned()),
        };
        let start_ns = start.map(str::parse).transpose();
        let start_ns = start_ns.map_err(|_| "expected PID@START_NS, both numbers".to_owned())?;
        Ok(Self { pid, start_ns })
    }
}

impl Target {
    /// Returns its name for the agent; `None` where that cannot mean the same.
    #[cfg(feature = "agent")]
    pub(super) fn for_agent(self) -> Option<String> {
        super::asked::named(self.pid, self.start_ns)
    }

    /// Finds the process in a snapshot: alive, or a ghost when it was named exactly or nothing else
    /// has its pid. A pid alone that is a living process and was a ghost's with living descendants
    /// names neither.
    ///
    /// # Errors
    /// [`NoSuchProcess`], which says what the pid is instead and what to do.
    pub(super) fn find(self, snapshot: &Snapshot) -> Result<ProcessId, NoSuchProcess> {
        let found = self.find_present(snapshot)?;
        match self.doubt(found, snapshot) {
            Some(doubt) => Err(NoSuchProcess(doubt)),
            None => Ok(found),
        }
    }

    /// Finds the process as [`Target::find`] does, and takes the living one where the pid was
    /// a ghost's as well: for commands that show which process they are about. That there are two
    /// is said.
    ///
    /// # Errors
    /// As [`Target::find`].
    pub(super) fn find_shown(self, snapshot: &Snapshot) -> Result<ProcessId, NoSuchProcess> {
        let found = self.find_present(snapshot)?;
        if let Some(doubt) = self.doubt(found, snapshot) {
            log::warn!("{doubt}");
        }
        Ok(found)
    }

    /// Returns which two processes a pid alone can mean; `None` where it is one.
    fn doubt(self, found: ProcessId, snapshot: &Snapshot) -> Option<String> {
        let (ghost, _) = snapshot
            .ghost(self.pid)
            .filter(|(ghost, _)| *ghost != found)?;
        if self.start_ns.is_some() {
            return None;
        }
        let forest = Forest::new(snapshot.records.iter().copied());
        let left = forest.living(*ghost).len();
        let named = |id: &ProcessId| {
            let who = forest
                .record(id)
                .map(|record| Process::of_record(*id, record));
            let name = who.and_then(|process| process.name).unwrap_or_default();
            format!("{} ({}@{})", printable(&name), id.pid, id.start_ns)
        };
        (left > 0).then(|| {
            format!(
                "pid {} is {} now, and was {}, which is dead and has {} below; name one of them as \
                 PID@START_NS",
                self.pid,
                named(&found),
                named(ghost),
                count(left, "living process"),
            )
        })
    }

    fn find_present(self, snapshot: &Snapshot) -> Result<ProcessId, NoSuchProcess> {
        let live = snapshot.live(self.pid).map(|(id, _)| *id);
        if let Some(start_ns) = self.start_ns {
            let id = ProcessId::new(self.pid, start_ns);
            if let Some(exact) = snapshot.exact(id) {
                return Ok(exact);
            }
            return Err(NoSuchProcess(match live {
                Some(now) => format!(
                    "process {}@{start_ns} is gone; pid {} is another process now, {}@{}",
                    self.pid, self.pid, now.pid, now.start_ns
                ),
                None => format!("no process {}@{start_ns}", self.pid),
            }));
        }
        if let Some(id) = live {
            return Ok(id);
        }
        let pid = self.pid;
        let ghost = snapshot.ghost(pid).map(|(id, _)| *id);
        match (proc::kind(pid), ghost) {
            (Kind::ThreadOf(group), _) => Err(NoSuchProcess(format!(
                "{pid} is a thread of process {group}, not a process; use {group}"
            ))),
            (Kind::KernelThread, _) => Err(NoSuchProcess(format!(
                "{pid} is a kernel thread; lifemon watches processes only"
            ))),
            (_, Some(ghost)) => Ok(ghost),
            (Kind::Zombie, None) => Err(NoSuchProcess(format!(
                "process {pid} is dead already and waits to be reaped by its parent"
            ))),
            (Kind::Nothing, None) => Err(NoSuchProcess(format!(
                "no process {pid}; `ps -e` lists the processes that there are"
            ))),
            (Kind::Process, None) => Err(NoSuchProcess(format!(
                "process {pid} has no record: the lineage map is full; use a larger --max-processes"
            ))),
        }
    }
}

impl Target {
    /// Checks that a process that was named by its pid alone was there before the command began, at
    /// `begun_ns` since boot: one that has started since was given the pid of the one that was
    /// meant.
    ///
    /// # Errors
    /// [`NoSuchProcess`], with the way to mean it all the same.
    pub(super) fn check_is_older(
        self,
        found: ProcessId,
        begun_ns: u64,
    ) -> Result<(), NoSuchProcess> {
        if self.start_ns.is_some() || found.start_ns <= begun_ns {
            return Ok(());
        }
        let (pid, start_ns) = (found.pid, found.start_ns);
        Err(NoSuchProcess(format!(
            "process {pid} is gone; its pid is that of a process by now that is younger than this \
             command; {pid}@{start_ns} names that one"
        )))
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
                (ProcessId::new(4_000_009, 90), record(DEAD)),
            ],
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_is_typed_parses() {
        assert_eq!(
            "12".parse(),
            Ok(Target {
                pid: 12,
                start_ns: None
            })
        );
        assert_eq!(
            "12@345".parse(),
            Ok(Target {
                pid: 12,
                start_ns: Some(345)
            })
        );
        for wrong in [
            "",
            "0",
            "-1",
            "x",
            "12@",
            "12@x",
            "@5",
            "4294967295",
            "99999999999",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?} parsed");
        }
    }

    #[test]
    fn a_pid_is_the_living_process_that_has_it() {
        let target: Target = "7".parse().unwrap();
        assert_eq!(target.find(&snapshot()).unwrap(), ProcessId::new(7, 77));
    }

    #[test]
    fn a_pid_that_was_a_ghosts_with_living_descendants_names_neither() {
        let mut snapshot = snapshot();
        let below = Record {
            state: LIVE,
            creator: ProcessId::new(7, 70),
            ..Record::default()
        };
        snapshot.records.push((ProcessId::new(9, 80), below));
        let find = |text: &str| text.parse::<Target>().unwrap().find(&snapshot);
        let doubt = find("7").unwrap_err().0;
        assert!(doubt.contains("7@77") && doubt.contains("7@70"), "{doubt}");
        assert_eq!(find("7@77").unwrap(), ProcessId::new(7, 77));
        assert_eq!(find("7@70").unwrap(), ProcessId::new(7, 70));
        let shown = "7".parse::<Target>().unwrap().find_shown(&snapshot);
        assert_eq!(shown.unwrap(), ProcessId::new(7, 77));
    }

    #[test]
    fn who_is_younger_than_the_command_must_be_named_exactly() {
        let found = ProcessId::new(7, 77);
        let check = |text: &str, begun_ns| {
            let target: Target = text.parse().unwrap();
            target.check_is_older(found, begun_ns)
        };
        assert!(check("7", 77).is_ok() && check("7@77", 76).is_ok());
        assert!(check("7", 76).unwrap_err().0.contains("7@77"));
    }

    #[test]
    fn an_exact_name_finds_the_ghost_and_never_a_successor() {
        let exact = |text: &str| text.parse::<Target>().unwrap().find(&snapshot());
        assert_eq!(exact("7@70").unwrap(), ProcessId::new(7, 70));
        assert!(exact("7@71").unwrap_err().0.contains("another process now"));
        assert_eq!(exact("4000009").unwrap(), ProcessId::new(4_000_009, 90));
    }
}

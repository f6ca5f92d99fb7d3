//! A process as the user names it: `PID`, or `PID@START_NS` for exactly that one. Finds out which
//! process it is, and explains why where there is none.

use std::str::FromStr;
use std::sync::OnceLock;

use lifemon_ebpf::LIVE;

use crate::ProcessId;
use crate::forest::Forest;
use crate::kernel::snapshot::Snapshot;
use crate::proc::{self, Kind, Zombie};
use crate::process::Process;
use crate::report::out::printable;
use crate::words::count;

use super::NoSuchProcess;

/// A process as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pid: u32,
    start_ns: Option<u64>,
    namespace: Namespace,
}

/// The pid namespace that a pid is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Namespace {
    /// That of `--in`, else the initial one.
    #[default]
    Default,
    /// Any but the initial one, if one alone has it.
    Any,
    /// The one with this inode, as `lsns -t pid` lists them.
    Inode(u64),
}

/// The pid namespace of `--in`, by its inode.
static INSIDE: OnceLock<u64> = OnceLock::new();

/// Takes pids from now on as those of the pid namespace of this process.
///
/// # Errors
/// [`NoSuchProcess`] where that is none, or may not be looked at.
pub(super) fn look_inside(pid: u32) -> Result<(), NoSuchProcess> {
    let inode = proc::pid_namespace(pid).ok_or_else(|| {
        NoSuchProcess(format!(
            "--in {pid}: no such process, or it is not visible for you; `ps -e` lists those there are"
        ))
    })?;
    // It is given once, on the command line.
    let _ = INSIDE.set(inode);
    Ok(())
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((namespace, pid)) = text.split_once(':') {
            let namespace = match (namespace, namespace.parse()) {
                ("ns", _) => Namespace::Any,
                (_, Ok(inode)) => Namespace::Inode(inode),
                _ => return Err("expected ns:PID, or INODE:PID of a pid namespace".to_owned()),
            };
            let inside: Self = pid.parse()?;
            if inside.start_ns.is_some() {
                return Err("PID@START_NS names a process in any namespace".to_owned());
            }
            return Ok(Self {
                namespace,
                ..inside
            });
        }
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
        Ok(Self {
            pid,
            start_ns,
            namespace: Namespace::Default,
        })
    }
}

impl Target {
    /// Returns its name for the agent; `None` where that cannot mean the same.
    #[cfg(feature = "agent")]
    pub(super) fn for_agent(self) -> Option<String> {
        match self.namespace {
            Namespace::Default => super::asked::named(self.pid, self.start_ns),
            Namespace::Any | Namespace::Inode(_) => None,
        }
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
        if self.start_ns.is_some() || self.within() != Namespace::Default {
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

    /// Returns the zombie that is meant: a process that has no living record, is dead, and is not
    /// reaped. Where it was named exactly, its start is exact to a clock tick.
    pub(super) fn zombie(self, snapshot: &Snapshot) -> Option<Zombie> {
        let is_of_host = self.within() == Namespace::Default && snapshot.live(self.pid).is_none();
        let zombie = proc::zombie(self.pid).filter(|_| is_of_host)?;
        let is_it = |start_ns| proc::owns_pid(ProcessId::new(self.pid, start_ns));
        self.start_ns.is_none_or(is_it).then_some(zombie)
    }

    /// Returns whether these words can mean this process.
    pub(super) fn names(self, id: ProcessId) -> bool {
        self.pid == id.pid && self.start_ns.is_none_or(|start_ns| start_ns == id.start_ns)
    }

    /// Returns in which pid namespace the pid is, with what `--in` says.
    fn within(self) -> Namespace {
        let inside = INSIDE.get().copied().map(Namespace::Inode);
        match (self.namespace, self.start_ns) {
            (Namespace::Inode(inode), _) => Namespace::Inode(inode),
            (Namespace::Default, Some(_)) => Namespace::Default,
            (own, _) => inside.unwrap_or(own),
        }
    }

    /// Finds the living process that has this pid in another pid namespace.
    fn find_inside(
        self,
        inode: Option<u64>,
        snapshot: &Snapshot,
    ) -> Result<ProcessId, NoSuchProcess> {
        let own = proc::pid_namespace(std::process::id());
        let is_inside = |id: &ProcessId| {
            let found = proc::pid_namespace(id.pid).filter(|_| proc::owns_pid(*id));
            match inode {
                Some(inode) => found == Some(inode),
                None => found.is_some() && found != own,
            }
        };
        let records = snapshot.records.iter();
        let living =
            records.filter(|(_, record)| record.state == LIVE && record.ns_pid == self.pid);
        let found: Vec<_> = living.map(|(id, _)| *id).filter(is_inside).collect();
        let pid = self.pid;
        match (found.as_slice(), inode) {
            ([one], _) => Ok(*one),
            ([], Some(inode)) => Err(NoSuchProcess(format!(
                "no process {pid} in the pid namespace {inode}; `lsns -t pid` lists the namespaces"
            ))),
            ([], None) => Err(NoSuchProcess(format!(
                "no pid namespace but the initial one has a process {pid}"
            ))),
            (many, _) => {
                let names = many.iter().map(|id| format!("{}@{}", id.pid, id.start_ns));
                let names: Vec<_> = names.collect();
                Err(NoSuchProcess(format!(
                    "several pid namespaces have a process {pid}: {}; name one of them so, or say \
                     --in",
                    names.join(", ")
                )))
            }
        }
    }

    fn find_present(self, snapshot: &Snapshot) -> Result<ProcessId, NoSuchProcess> {
        match self.within() {
            Namespace::Default => {}
            Namespace::Any => return self.find_inside(None, snapshot),
            Namespace::Inode(inode) => return self.find_inside(Some(inode), snapshot),
        }
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
                start_ns: None,
                namespace: Namespace::Default,
            })
        );
        assert_eq!(
            "12@345".parse(),
            Ok(Target {
                pid: 12,
                start_ns: Some(345),
                namespace: Namespace::Default,
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

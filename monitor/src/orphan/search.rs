//! Collects the facts about an orphan: from its record and its creator's, from the kernel's flags,
//! and from `/proc`.

use std::collections::HashMap;

use lifemon_ebpf::{INFERRED, LIVE, ProcessId, Record};

use super::verdict::{Ending, Facts, judge};
use super::{Evidence, Known, Orphan, Subtree, Verdict};
use crate::forest::Forest;
use crate::proc::{self, Commands, Placement, Stat};
use crate::process::{Death, Process, Who};

/// The device number of `/dev/null`:
/// <https://www.kernel.org/doc/html/v6.12/admin-guide/devices.html>.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Helpers of helpers that are looked at, and forks without an exec above one: more than any
/// program makes, and an end.
const HELPERS: usize = 8;
const FORKS: usize = 64;

/// A search under way.
pub(super) struct Search<'a> {
    pub(super) known: &'a Known<'a>,
    /// For each process that has created the first process of a pid namespace, the pid of that.
    creators_of_inits: HashMap<ProcessId, u32>,
    roots: Roots<'a>,
    commands: Commands,
}

impl<'a> Search<'a> {
    pub(super) fn new(known: &'a Known<'a>) -> Self {
        let living = known.forest.records();
        let inits =
            living.filter(|(id, record)| record.state == LIVE && record.ns_pid == 1 && id.pid != 1);
        Self {
            known,
            creators_of_inits: inits.map(|(id, record)| (record.creator, id.pid)).collect(),
            roots: Roots::new(known.forest),
            commands: Commands::default(),
        }
    }

    /// Describes an orphan whose creator's death was seen; `None` when it has died meanwhile.
    pub(super) fn seen(&mut self, id: ProcessId) -> Option<Orphan> {
        let forest = self.known.forest;
        let record = forest.record(&id)?;
        let creator = forest.record(&record.creator)?;
        let root = self.roots.root_of(record.creator);
        let stat = proc::stat(id.pid)?;
        let mut orphan = self.describe(id, record, &stat)?;
        let facts = self.facts(id, record, &stat, &orphan.placement, root);
        (orphan.verdict, orphan.evidence) = judge(&facts);
        if facts.is_older {
            orphan
                .evidence
                .push(Evidence::ParentDied(record.creator.pid));
        }
        orphan.creator = self.who(record.creator);
        orphan.creator_death = Some(Death::of_record(creator));
        orphan.orphaned_ns = Some(creator.exit_ns);
        orphan.root = self.who(root);
        orphan.root_alive = forest.is_live(&root);
        orphan.parent = self.parent(&stat, record.creator);
        proc::is_live(id).then_some(orphan)
    }

    /// Returns the verdict on an orphan whose creator's death was seen, and nothing else of it;
    /// `None` when it has died meanwhile.
    #[cfg(feature = "agent")]
    pub(super) fn verdict(&mut self, id: ProcessId) -> Option<Verdict> {
        let record = self.known.forest.record(&id)?;
        if record.origin & INFERRED != 0 {
            return Some(Verdict::Inferred);
        }
        let root = self.roots.root_of(record.creator);
        let (stat, placement) = (proc::stat(id.pid)?, proc::placement_of(id.pid)?);
        let facts = self.facts(id, record, &stat, &placement, root);
        proc::is_live(id).then(|| judge(&facts).0)
    }

    /// Collects what the verdict depends on.
    fn facts(
        &self,
        id: ProcessId,
        record: &Record,
        stat: &Stat,
        placement: &Placement,
        root: ProcessId,
    ) -> Facts {
        let creator = self.known.forest.record(&record.creator);
        let starter = creator.filter(|_| record.elided == 0);
        Facts {
            is_older: record.origin & INFERRED != 0,
            has_entered: placement.container.is_some()
                && record.ns_pid != 1
                && record.ns_pid != id.pid,
            own_unit: creator.and_then(|creator| own_unit(record, creator, placement)),
            is_subreaper: self.known.subreapers.contains(&id),
            created_init: self.creators_of_inits.get(&id).copied(),
            starter: end_of_starter(self.known.forest, record, stat.session),
            elided_badly: record.elided_badly != 0,
            root: self
                .known
                .forest
                .record(&root)
                .map(ending)
                .unwrap_or_default(),
            own_session: stat.session == id.pid
                || starter.is_some_and(|starter| made_session(stat, record.creator, starter)),
            other_program: record.exec_ns != 0,
            null_input: proc::input_device(id.pid) == Some(NULL_DEVICE),
            ignores_hangup: proc::ignores_hangup(id.pid),
        }
    }

    /// Describes what is common to orphans of all kinds; returns `None` when no process has the
    /// pid. The caller checks afterwards that the pid still belongs to `id`.
    pub(super) fn describe(&self, id: ProcessId, record: &Record, stat: &Stat) -> Option<Orphan> {
        Some(Orphan {
            process: Process::of_record(id, record),
            verdict: Verdict::Inferred,
            evidence: Vec::new(),
            creator: None,
            creator_death: None,
            orphaned_ns: None,
            root: None,
            root_alive: false,
            parent: None,
            state: stat.state,
            command: self.commands.of(id.pid)?,
            placement: proc::placement_of(id.pid)?,
            gpu: self.known.holders.get(&id).cloned().unwrap_or_default(),
            subtree: Subtree::default(),
        })
    }

    /// Returns identity and name, from the record.
    pub(super) fn who(&self, id: ProcessId) -> Option<Who> {
        let record = self.known.forest.record(&id)?;
        Some(Process::of_record(id, record).who())
    }

    /// Returns the present parent, once it is another than the creator.
    fn parent(&self, stat: &Stat, creator: ProcessId) -> Option<Who> {
        if stat.parent == 0 || (stat.parent == creator.pid && proc::owns_pid(creator)) {
            return None;
        }
        let parent = self.known.forest.live(stat.parent)?;
        self.who(parent)
    }
}

/// Returns how a process ended, from its record.
fn ending(record: &Record) -> Ending {
    if record.state == LIVE {
        Ending::Unknown
    } else {
        Ending::of(&Death::of_record(record))
    }
}

/// Returns how the starter of a process with this record ended, which is in this session now.
///
/// A starter that was forked to make the session, and never called exec, is a part of the program
/// that it was forked from: where that was killed, so was the starter. A browser starts its helper
/// so; a program that was started to start another one has called exec, and stands for itself. Such
/// a helper may start one of its own in the same way, and live.
fn end_of_starter(forest: &Forest, record: &Record, session: u32) -> Ending {
    let Some(starter) = forest
        .record(&record.creator)
        .filter(|_| record.elided == 0)
    else {
        return Ending::Unknown;
    };
    let (mut at, mut session) = (record.creator, session);
    for _ in 0..HELPERS {
        let is_part = forest.record(&at).is_some_and(|part| {
            part.exec_ns == 0 && session == at.pid && part.session != at.pid && part.elided == 0
        });
        let Some(program) = is_part.then(|| program_of(forest, at)).flatten() else {
            break;
        };
        if program.state != LIVE {
            if ending(program) == Ending::Killed {
                return Ending::Killed;
            }
            break;
        }
        if program.elided != 0 {
            break;
        }
        (at, session) = (program.creator, program.session);
    }
    ending(starter)
}

/// Returns the nearest process above this one, or itself, that has called exec; `None` where that
/// is not known.
fn program_of(forest: &Forest, id: ProcessId) -> Option<&Record> {
    let mut record = forest.record(&id)?;
    for _ in 0..FORKS {
        if record.exec_ns != 0 {
            return Some(record);
        }
        if record.elided != 0 {
            return None;
        }
        record = forest.record(&record.creator)?;
    }
    None
}

/// Returns whether a process is in a session that its starter made after the starter's last exec:
/// the starter's record has the session of that time.
fn made_session(stat: &Stat, id: ProcessId, starter: &Record) -> bool {
    stat.session == id.pid && starter.session != id.pid
}

/// Returns the unit or container of a process, when its creator was not in the same control group.
fn own_unit(record: &Record, creator: &Record, placement: &Placement) -> Option<String> {
    let place = placement.unit.as_ref().or(placement.container.as_ref());
    place
        .filter(|_| record.cgroup_id != creator.cgroup_id)
        .cloned()
}

/// Finds roots, and remembers which processes somebody types into.
struct Roots<'a> {
    forest: &'a Forest,
    /// For each living process looked at, whether it is a shell on a terminal.
    shells: HashMap<ProcessId, bool>,
}

impl<'a> Roots<'a> {
    fn new(forest: &'a Forest) -> Self {
        Self {
            forest,
            shells: HashMap::new(),
        }
    }

    /// Finds the root as [`root_of`] does.
    fn root_of(&mut self, id: ProcessId) -> ProcessId {
        let forest = self.forest;
        forest.root_of(&id, |above, below| {
            let group = |id: &ProcessId| forest.record(id).map(|record| record.cgroup_id);
            above.pid == 1 || group(above) != group(below) || self.is_typed_into(above)
        })
    }

    /// Returns whether the process is live and leads a session on a terminal.
    fn is_typed_into(&mut self, id: &ProcessId) -> bool {
        let forest = self.forest;
        *self.shells.entry(*id).or_insert_with(|| {
            forest.is_live(id)
                && proc::stat(id.pid)
                    .is_some_and(|stat| stat.session == id.pid && stat.terminal != 0)
        })
    }
}

/// Returns the root of the tree that `id` belongs to. A tree ends below process 1, below a shell
/// that somebody types into, and where the control group changes: units, sessions of users and
/// containers have one each.
#[must_use]
pub fn root_of(forest: &Forest, id: ProcessId) -> ProcessId {
    Roots::new(forest).root_of(id)
}

#[cfg(test)]
mod tests {
    use lifemon_ebpf::DEAD;

    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId::new(pid, u64::from(pid))
    }

    /// A record with these: creator, status of its death, time of its last exec, session.
    fn record(creator: u32, status: Option<u32>, exec_ns: u64, session: u32) -> Record {
        Record {
            creator: id(creator),
            state: if status.is_some() { DEAD } else { LIVE },
            status: status.unwrap_or_default(),
            exec_ns,
            session,
            ..Record::default()
        }
    }

    /// 2 is a program that dies with `status`; 3 is forked from it, makes a session and exits; 4 is
    /// its helper, and has one of its own, 6, by 5 that does as 3 did.
    fn helpers(status: Option<u32>, exec_ns: u64) -> Forest {
        Forest::new([
            (id(2), record(1, status, 20, 1)),
            (id(3), record(2, Some(0), exec_ns, 1)),
            (id(4), record(3, None, 40, 3)),
            (id(5), record(4, Some(0), 0, 3)),
            (id(6), record(5, None, 60, 5)),
        ])
    }

    fn end(forest: &Forest, pid: u32, session: u32) -> Ending {
        end_of_starter(forest, forest.record(&id(pid)).unwrap(), session)
    }

    #[test]
    fn who_makes_a_session_for_a_helper_is_a_part_of_the_program_that_was_killed() {
        let killed = helpers(Some(9), 0);
        assert_eq!(end(&killed, 4, 3), Ending::Killed);
        assert_eq!(end(&killed, 6, 5), Ending::Killed);
        // It has not made the session that the helper is in.
        assert_eq!(end(&killed, 4, 1), Ending::Well);
        // The starter is a program of its own.
        assert_eq!(end(&helpers(Some(9), 30), 4, 3), Ending::Well);
        for status in [None, Some(0), Some(1 << 8)] {
            let exited = helpers(status, 0);
            assert_eq!(end(&exited, 4, 3), Ending::Well);
            assert_eq!(end(&exited, 6, 5), Ending::Well);
        }
    }

    #[test]
    fn what_is_not_kept_makes_no_starter_of_the_killed() {
        let mut part = record(2, Some(0), 0, 1);
        part.elided = 1;
        let mut helper = record(3, None, 40, 3);
        let of = |part, helper| {
            let program = record(1, Some(9), 20, 1);
            Forest::new([(id(2), program), (id(3), part), (id(4), helper)])
        };
        assert_eq!(end(&of(part, helper), 4, 3), Ending::Well);
        helper.elided = 1;
        assert_eq!(end(&of(part, helper), 4, 3), Ending::Unknown);
    }
}

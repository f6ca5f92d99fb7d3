//! Processes older than tracking that look like orphans. Nobody saw their creators die, so nothing
//! here is certain: each comes with its evidence, and none is killed without `--force`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use lifemon_ebpf::{INFERRED, LIVE, ProcessId, Record};

use super::search::Search;
use super::{Evidence, Orphan};
use crate::forest::Forest;
use crate::kernel::left;
use crate::proc::{self, Placement, Stat};
use crate::process::Who;

/// Resources of the members of a known tree that a process they left behind may share.
#[derive(Default)]
struct Marks {
    members: HashSet<ProcessId>,
    /// The creators of the root, all the way up: a tree never leaves its own ancestors behind.
    ancestors: HashSet<ProcessId>,
    sessions: HashSet<u32>,
    cgroups: HashSet<String>,
    jobs: HashSet<String>,
    files: HashSet<PathBuf>,
}

/// Finds the processes that look like orphans; given a tree, only those that look like its orphans.
pub(super) fn find(search: &Search<'_>, tree: Option<ProcessId>) -> Vec<Orphan> {
    let mut found = seen_left(search, tree);
    let seen: HashSet<_> = found.iter().map(|orphan| orphan.process.id).collect();
    let marks = tree.map(|root| marks(search.known.forest, root));
    let candidates = candidates(search);
    let others = candidates
        .filter(|(id, _)| !seen.contains(id))
        .filter(|(id, _)| marks.as_ref().is_none_or(|marks| !marks.is_kin(id)))
        .filter_map(|(id, record)| look(search, *id, record, marks.as_ref()));
    found.extend(others);
    found
}

/// Finds the processes that `attach` has seen left behind, by this tree where one is given. Those
/// whose parent has died since are orphans that were seen.
fn seen_left(search: &Search<'_>, tree: Option<ProcessId>) -> Vec<Orphan> {
    let forest = search.known.forest;
    let left = left::recall().into_iter();
    let left = left.filter(|(_, root)| tree.is_none_or(|tree| tree == root.id));
    let describe = |(id, root): (ProcessId, Who)| {
        let record = forest.record(&id).filter(|_| !forest.is_orphan(&id))?;
        let is_older = record.state == LIVE && record.origin & INFERRED != 0;
        let stat = proc::stat(id.pid).filter(|_| is_older)?;
        let mut orphan = search.describe(id, record, &stat)?;
        orphan.evidence = vec![Evidence::LeftBehind(root.to_string())];
        let parent = forest.live(stat.parent);
        orphan.parent = parent.and_then(|parent| search.who(parent));
        proc::is_live(id).then_some(orphan)
    };
    left.filter_map(describe).collect()
}

/// Returns living processes that are older than tracking, and that their parent of that time may
/// have adopted. Those whose parent has died since are orphans that were seen.
fn candidates<'a>(
    search: &Search<'a>,
) -> impl Iterator<Item = (&'a ProcessId, &'a Record)> + use<'a> {
    let known = search.known;
    let is_adopter = |id: &ProcessId| {
        let is_init = || {
            known
                .forest
                .record(id)
                .is_some_and(|record| record.ns_pid == 1)
        };
        id.pid == 1 || known.subreapers.contains(id) || is_init()
    };
    known.forest.records().filter(move |(id, record)| {
        let is_older = record.state == LIVE && record.origin & INFERRED != 0 && id.pid != 1;
        is_older && record.ns_pid != 1 && !known.forest.is_orphan(id) && is_adopter(&record.creator)
    })
}

/// Examines one process; returns it as an orphan if there is evidence.
fn look(
    search: &Search<'_>,
    id: ProcessId,
    record: &Record,
    marks: Option<&Marks>,
) -> Option<Orphan> {
    let stat = proc::stat(id.pid)?;
    let parent = proc::stat(stat.parent)?;
    let mut orphan = search.describe(id, record, &stat)?;
    let mut evidence = Vec::new();
    let is_in_another = stat.session != id.pid && stat.session != parent.session;
    if stat.session != 0 && is_in_another {
        evidence.push(Evidence::SessionOfOthers(stat.session));
        if !leads(stat.session) {
            evidence.push(Evidence::SessionLeaderGone(stat.session));
        }
    }
    // A service that init manages leads a session of its own and was not left behind.
    let unit = orphan.placement.unit.as_deref();
    let is_service = unit.is_some_and(|unit| unit.ends_with(".service"));
    if stat.session == id.pid && !is_service {
        evidence.push(Evidence::OwnSession);
    }
    let jobs = proc::job_markers(id).into_iter();
    evidence.extend(jobs.filter(|job| proc::is_of_job(job)).map(Evidence::OfJob));
    if let Some(device) = orphan.gpu.devices.first()
        && (is_in_another || !is_service)
    {
        evidence.push(Evidence::Device(device.display().to_string()));
    }
    if let Some(marks) = marks {
        let shared = marks.shared_with(id, &stat, &orphan.placement);
        if shared.is_empty() {
            return None;
        }
        evidence.extend(shared);
    }
    if evidence.is_empty() {
        return None;
    }
    orphan.evidence = evidence;
    let parent = search.known.forest.live(stat.parent);
    orphan.parent = parent.and_then(|parent| search.who(parent));
    proc::is_live(id).then_some(orphan)
}

/// Returns whether this pid is that of the leader of the session that is named after it.
fn leads(session: u32) -> bool {
    proc::stat(session).is_some_and(|leader| leader.session == session && !leader.is_gone())
}

/// Collects what the living members of the tree of `root` have.
fn marks(forest: &Forest, root: ProcessId) -> Marks {
    let ancestors = forest.ancestors(&root).into_iter();
    let mut marks = Marks {
        ancestors: ancestors.collect(),
        ..Marks::default()
    };
    for id in forest.living(root) {
        let (Some(stat), Some(placement)) = (proc::stat(id.pid), proc::placement(id)) else {
            continue;
        };
        marks.members.insert(id);
        marks
            .sessions
            .extend((stat.session != 0).then_some(stat.session));
        marks
            .cgroups
            .extend((placement.cgroup != "/").then_some(placement.cgroup));
        marks.jobs.extend(proc::job_markers(id));
        marks.files.extend(private_files(id.pid));
    }
    marks
}

impl Marks {
    /// Returns whether the process is a member of the tree, or an ancestor of its root.
    fn is_kin(&self, id: &ProcessId) -> bool {
        self.members.contains(id) || self.ancestors.contains(id)
    }

    /// Returns what a process has in common with the tree.
    fn shared_with(&self, id: ProcessId, stat: &Stat, placement: &Placement) -> Vec<Evidence> {
        let mut evidence = Vec::new();
        if self.sessions.contains(&stat.session) {
            evidence.push(Evidence::SharedSession(stat.session));
        }
        if self.cgroups.contains(&placement.cgroup) {
            evidence.push(Evidence::SharedCgroup(placement.cgroup.clone()));
        }
        let jobs = proc::job_markers(id).into_iter();
        evidence.extend(
            jobs.filter(|job| self.jobs.contains(job))
                .map(Evidence::SharedJob),
        );
        let shared = private_files(id.pid)
            .into_iter()
            .find(|file| self.files.contains(file));
        evidence.extend(shared.map(|file| Evidence::SharedFile(file.display().to_string())));
        evidence
    }
}

/// Returns open files that a process has in common only with those who got them from it or from its
/// ancestors, or who share memory with it by name.
fn private_files(pid: u32) -> Vec<PathBuf> {
    let is_standard = |descriptor: u32| descriptor <= 2;
    let files = proc::open_files(pid, |file| {
        !is_standard(file.descriptor) && is_private(&file.target)
    });
    let files = files.unwrap_or_default().into_iter();
    files.map(|file| file.target).collect()
}

fn is_private(target: &Path) -> bool {
    let Some(name) = target.to_str() else {
        return false;
    };
    let kinds = ["pipe:[", "socket:[", "/dev/shm/"];
    kinds.iter().any(|kind| name.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_handed_on_or_named_shared_memory_connect_processes() {
        for private in ["pipe:[12]", "socket:[9]", "/dev/shm/psm_1"] {
            assert!(is_private(Path::new(private)), "{private}");
        }
        for public in [
            "/dev/null",
            "/var/log/x",
            "/dev/nvidia0",
            "/memfd:x (deleted)",
        ] {
            assert!(!is_private(Path::new(public)), "{public}");
        }
    }
}

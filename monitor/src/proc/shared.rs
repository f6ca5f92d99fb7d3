//! What a process has that only those it comes from, or who come from it, are likely to have as
//! well: its group and session, its control group, the marks of its job, pipes that were handed on,
//! memory that is shared. Evidence, never a proof: a process chooses all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

use lifemon_ebpf::ProcessId;
use serde::{Deserialize, Serialize};

use super::files::{OpenFile, open_files};
use super::threads::files_of;
use super::{job_markers, placement, stat};

/// Bytes of the list of a process's mappings that are read: more than the kernel's default limit of
/// 65,530 mappings needs.
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// One thing that two processes have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shared {
    /// The process group with this leader.
    Group(u32),
    /// The session with this leader.
    Session(u32),
    /// This control group, or one below it.
    Cgroup(String),
    /// The mark of a job: `NAME=VALUE` in its environment.
    Job(String),
    /// A pipe or a socket that was handed on.
    Pipe(String),
    /// Memory: a mapping, or an object of shared memory.
    Memory(String),
}

impl Shared {
    /// Returns the word of the output.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Group(_) => "same_group",
            Self::Session(_) => "same_session",
            Self::Cgroup(_) => "same_cgroup",
            Self::Job(_) => "same_job",
            Self::Pipe(_) => "same_pipe",
            Self::Memory(_) => "same_memory",
        }
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "in the same process group ({group})"),
            Self::Session(session) => write!(f, "in the same session ({session})"),
            Self::Cgroup(cgroup) => write!(f, "in the same control group ({cgroup})"),
            Self::Job(mark) => write!(f, "of the same job ({mark})"),
            Self::Pipe(name) => write!(f, "has a pipe in common ({name})"),
            Self::Memory(name) => write!(f, "has memory in common ({name})"),
        }
    }
}

/// The belongings of some processes.
#[derive(Debug, Default)]
pub(crate) struct Belongings {
    groups: BTreeSet<u32>,
    sessions: BTreeSet<u32>,
    cgroups: BTreeSet<String>,
    jobs: BTreeSet<String>,
    pipes: BTreeSet<String>,
    /// Shared memory by device and inode, with its name.
    memory: BTreeMap<String, String>,
}

impl Belongings {
    /// Returns the belongings of one process; what may not be looked at is left out.
    pub(crate) fn of(id: ProcessId) -> Self {
        let mut belongings = Self::default();
        belongings.add(id);
        let placement = placement(id).filter(|placement| placement.cgroup != "/");
        let cgroup = placement.map(|placement| placement.cgroup);
        belongings.cgroups.extend(cgroup);
        belongings
    }

    /// Adds those of a member of the tree, but for its control group: a member that was put beside
    /// others has nothing to do with them.
    pub(crate) fn add(&mut self, id: ProcessId) {
        let Some(stat) = stat(id.pid).filter(|stat| stat.is_of(id)) else {
            return;
        };
        // 0 is what `/proc` shows of a leader outside its pid namespace.
        self.groups.extend((stat.group != 0).then_some(stat.group));
        self.sessions
            .extend((stat.session != 0).then_some(stat.session));
        self.jobs.extend(job_markers(id));
        self.add_files(id);
    }

    /// Adds what was opened or mapped by one more process.
    pub(crate) fn add_files(&mut self, id: ProcessId) {
        let files = open_files(id.pid, is_handed_on).unwrap_or_default();
        for OpenFile { target, .. } in files {
            let name = target.display().to_string();
            if name.starts_with("/dev/shm/") {
                self.memory.insert(name.clone(), name);
            } else {
                self.pipes.insert(name);
            }
        }
        self.memory.extend(shared_mappings(id.pid));
    }

    /// Returns what a process of these belongings has in common with a tree, and cannot have from
    /// its present parent, nor, of files and memory, from `above`, who have handed much to many.
    pub(crate) fn shared_with(&self, tree: &Self, parent: &Self, above: &Self) -> Vec<Shared> {
        let groups = only(&self.groups, &tree.groups, &parent.groups).map(Shared::Group);
        let sessions = only(&self.sessions, &tree.sessions, &parent.sessions).map(Shared::Session);
        let cgroups = tree.cgroups.iter().filter(|cgroup| {
            let has = |belongings: &Self| belongings.cgroups.iter().any(|it| is_in(it, cgroup));
            has(self) && !has(parent)
        });
        let cgroups = cgroups.cloned().map(Shared::Cgroup);
        let jobs = only(&self.jobs, &tree.jobs, &parent.jobs).map(Shared::Job);
        let pipes = only(&self.pipes, &tree.pipes, &above.pipes).map(Shared::Pipe);
        let memory = self
            .memory
            .iter()
            .filter(|(key, _)| tree.memory.contains_key(*key) && !above.memory.contains_key(*key));
        let memory = memory.map(|(_, name)| Shared::Memory(name.clone()));
        let found = groups.chain(sessions).chain(cgroups).chain(jobs);
        found.chain(pipes).chain(memory).collect()
    }
}

/// Returns what is in the first two and not in the third.
fn only<'a, T: Ord + Clone>(
    own: &'a BTreeSet<T>,
    tree: &'a BTreeSet<T>,
    others: &'a BTreeSet<T>,
) -> impl Iterator<Item = T> + 'a {
    let both = own.intersection(tree);
    both.filter(|it| !others.contains(*it)).cloned()
}

/// Returns whether a control group is this one, or lies below it.
fn is_in(cgroup: &str, above: &str) -> bool {
    let below = cgroup.strip_prefix(above);
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns whether an open file connects processes: it was handed on, or is shared by its name. The
/// standard descriptors are not looked at: launchers give them to all that they start.
fn is_handed_on(file: &OpenFile) -> bool {
    let kinds = ["pipe:[", "socket:[", "/dev/shm/"];
    let name = file.target.to_str();
    file.descriptor > 2 && name.is_some_and(|name| kinds.iter().any(|kind| name.starts_with(kind)))
}

/// Returns the shared memory that a process has mapped, by device and inode, with its name.
fn shared_mappings(pid: u32) -> BTreeMap<String, String> {
    let Ok(maps) = File::open(files_of(pid).join("maps")) else {
        return BTreeMap::new();
    };
    let lines = BufReader::new(maps.take(MAPS_BYTES_MAX)).split(b'\n');
    let lines = lines.map_while(Result::ok);
    lines.filter_map(|line| shared_mapping(&line)).collect()
}

/// Reads a line `ADDRESSES PERMISSIONS OFFSET DEVICE INODE NAME`, if it is of shared memory: that
/// of `shm_open`, of `memfd_create`, of System V, or of a mapping that was inherited.
fn shared_mapping(line: &[u8]) -> Option<(String, String)> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.split_ascii_whitespace();
    let permissions = fields.nth(1)?;
    let (device, inode) = (fields.nth(1)?, fields.next()?);
    let name = fields.collect::<Vec<_>>().join(" ");
    let kinds = ["/dev/shm/", "/memfd:", "/SYSV", "/dev/zero (deleted)"];
    let is_memory = kinds.iter().any(|kind| name.starts_with(kind));
    (permissions.ends_with('s') && is_memory).then(|| (format!("{device}:{inode}"), name))
}

#[cfg(test)]
mod tests {
    use super::super::identify;
    use super::*;

    fn sets(groups: &[u32], cgroup: &str) -> Belongings {
        Belongings {
            groups: groups.iter().copied().collect(),
            cgroups: [cgroup.to_owned()].into(),
            ..Belongings::default()
        }
    }

    #[test]
    fn what_others_have_as_well_connects_nobody() {
        let (own, tree) = (sets(&[5, 6], "/a/b"), sets(&[5, 6], "/a"));
        let none = Belongings::default();
        let shared = own.shared_with(&tree, &sets(&[6], "/init"), &none);
        assert_eq!(shared, [Shared::Group(5), Shared::Cgroup("/a".to_owned())]);
        assert_eq!(own.shared_with(&tree, &sets(&[5, 6], "/a"), &none), []);
        let pipes = |names: &[&str]| Belongings {
            pipes: names.iter().copied().map(str::to_owned).collect(),
            ..Belongings::default()
        };
        let (own, tree) = (
            pipes(&["pipe:[1]", "pipe:[2]"]),
            pipes(&["pipe:[1]", "pipe:[2]"]),
        );
        let shared = own.shared_with(&tree, &none, &pipes(&["pipe:[1]"]));
        assert_eq!(shared, [Shared::Pipe("pipe:[2]".to_owned())]);
    }

    #[test]
    fn a_group_of_a_like_name_is_another() {
        assert!(is_in("/a/b", "/a") && is_in("/a", "/a"));
        assert!(!is_in("/ab", "/a") && !is_in("/", "/a"));
    }

    #[test]
    fn mappings_of_shared_memory_count_and_others_do_not() {
        let line = |text: &str| shared_mapping(text.as_bytes());
        let inherited = "7f00-7f10 rw-s 00000000 00:01 77    /dev/zero (deleted)";
        let key = ("00:01:77".to_owned(), "/dev/zero (deleted)".to_owned());
        assert_eq!(line(inherited), Some(key));
        assert!(line("7f00-7f10 r--s 0 00:19 5 /dev/shm/psm_1").is_some());
        for other in [
            "7f00-7f10 rw-p 00000000 00:00 0",
            "7f00-7f10 r--p 00000000 00:19 5 /dev/shm/psm_1",
            "7f00-7f10 rw-s 00000000 08:01 9 /var/lib/db",
            "7f00",
            "",
        ] {
            assert_eq!(line(other), None, "{other}");
        }
    }

    #[test]
    fn pipes_that_were_handed_on_connect_and_what_is_public_does_not() {
        let file = |descriptor, name: &str| OpenFile {
            descriptor,
            target: name.into(),
        };
        assert!(is_handed_on(&file(3, "pipe:[12]")) && is_handed_on(&file(9, "/dev/shm/psm_1")));
        for public in [
            "/dev/null",
            "/var/log/x",
            "/dev/nvidia0",
            "/memfd:x (deleted)",
        ] {
            assert!(!is_handed_on(&file(3, public)), "{public}");
        }
        assert!(!is_handed_on(&file(1, "pipe:[12]")));
    }

    #[test]
    fn this_process_has_all_with_itself_and_nothing_with_nobody() {
        let own = identify(std::process::id()).unwrap();
        let belongings = Belongings::of(own);
        let none = Belongings::default();
        let shared = belongings.shared_with(&Belongings::of(own), &none, &none);
        // Processes that the first one has started may be in its session and group, which have no
        // number.
        let stat = stat(own.pid).unwrap();
        let has = |kind: fn(&Shared) -> bool| shared.iter().any(kind);
        let of_session = has(|it| matches!(it, Shared::Session(_)));
        let of_group = has(|it| matches!(it, Shared::Group(_)));
        let expected = (stat.session != 0, stat.group != 0);
        assert_eq!((of_session, of_group), expected, "{shared:?}");
        let other = ProcessId::new(own.pid, own.start_ns + 5_000_000_000);
        assert_eq!(
            belongings.shared_with(&Belongings::of(other), &none, &none),
            []
        );
    }
}

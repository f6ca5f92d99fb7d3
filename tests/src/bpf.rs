//! What is loaded into the kernel, pinned and mounted, so that a test can say that a run of
//! lifemon left nothing: ids by `bpf(2)`, because lifemon itself is what is being tested.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::DEADLINE;
use crate::wait::{poll, wait_until};

/// Where the kernel keeps pinned objects.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// Where lifemon mounts one of its own, in directories that it makes for it.
const OWN_PLACE: &str = "/run/lifemon";

/// Where it remembers what was left behind.
const REMEMBERED: &str = "/run/lifemon/left";

const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

/// The part of `union bpf_attr` for the calls above.
#[repr(C)]
#[derive(Default)]
struct NextId {
    after: u32,
    found: u32,
    flags: u32,
    zero: u32,
}

/// Everything of BPF on this host at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Ids of the loaded programs.
    pub programs: BTreeSet<u32>,
    /// Ids of the maps.
    pub maps: BTreeSet<u32>,
    /// Ids of the links.
    pub links: BTreeSet<u32>,
    /// Files and directories in the BPF file systems, those that the kernel puts there left out.
    pub pins: BTreeSet<PathBuf>,
    /// Lines of this process's mounts at or below the places of BPF file systems.
    pub mounts: BTreeSet<String>,
}

impl Traces {
    /// Returns what there is once it stays the same: the kernel lets go of what only the loading of
    /// a tracker needed a moment after that.
    ///
    /// # Panics
    /// As [`Traces::now`], and when it does not settle.
    #[must_use]
    pub fn settled() -> Self {
        let mut last = Self::now();
        wait_until("settled traces", DEADLINE, || {
            thread::sleep(Duration::from_millis(100));
            let now = Self::now();
            let is_settled = now == last;
            last = now;
            is_settled
        });
        last
    }

    /// Returns what there is now.
    ///
    /// # Panics
    /// When this is not root, or the kernel has no `bpf(2)`.
    #[must_use]
    pub fn now() -> Self {
        Self {
            programs: ids(BPF_PROG_GET_NEXT_ID),
            maps: ids(BPF_MAP_GET_NEXT_ID),
            links: ids(BPF_LINK_GET_NEXT_ID),
            pins: pins(),
            mounts: mounts(),
        }
    }

    /// Returns the ids of the links alone, which is quick.
    pub(crate) fn link_ids() -> BTreeSet<u32> {
        ids(BPF_LINK_GET_NEXT_ID)
    }

    /// Returns what is here and was not in `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        fn more<T: Ord + Clone>(now: &BTreeSet<T>, before: &BTreeSet<T>) -> BTreeSet<T> {
            now.difference(before).cloned().collect()
        }
        Self {
            programs: more(&self.programs, &before.programs),
            maps: more(&self.maps, &before.maps),
            links: more(&self.links, &before.links),
            pins: more(&self.pins, &before.pins),
            mounts: more(&self.mounts, &before.mounts),
        }
    }

    /// Waits until nothing is there that was not: the kernel frees programs and maps a moment after
    /// their last user has ended.
    ///
    /// # Panics
    /// When something stays; the message lists it.
    #[track_caller]
    pub fn assert_nothing_since(&self) {
        let mut left = Self::default();
        let is_clean = || {
            left = Self::now().since(self);
            (left == Self::default()).then_some(())
        };
        assert!(poll(DEADLINE, is_clean).is_some(), "left behind: {left:?}");
    }
}

/// Returns all ids of one kind, by asking for the next one until there is none.
fn ids(command: libc::c_int) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut attr = NextId::default();
    // SAFETY: the attributes live as long as the call and have the size that is passed.
    while unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<NextId>()) } == 0
    {
        found.insert(attr.found);
        attr.after = attr.found;
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "bpf: {error}");
    found
}

fn pins() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![PathBuf::from(BPF_FS), PathBuf::from(OWN_PLACE)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            // Not of BPF: what was left behind is remembered until it is gone.
            if path == Path::new(REMEMBERED) {
                continue;
            }
            if path.is_dir() {
                directories.push(path.clone());
            }
            if path
                .extension()
                .is_none_or(|extension| extension != "debug")
            {
                found.insert(path);
            }
        }
    }
    found
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mounts of this process");
    let is_there = |line: &&str| {
        let point = line.split(' ').nth(4).map(Path::new);
        let ours = [BPF_FS, OWN_PLACE];
        point.is_some_and(|point| ours.iter().any(|place| point.starts_with(place)))
    };
    text.lines().filter(is_there).map(str::to_owned).collect()
}

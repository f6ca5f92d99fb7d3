//! What a watcher without the pinned tracker has seen left behind: orphans of a tree, whose history
//! ends with that watcher. Kept by identity until they are gone, so that a later look, which finds
//! them older than tracking, can name them.
//!
//! They are files of `/run/lifemon/left` (root's, 0700, see [`super::trusted`]): named after the
//! orphan, `PID-START_NS`, with its tree as JSON. A user can neither write there nor point it
//! elsewhere. There are [`FILES_MAX`] at most; those of processes that are gone are removed by
//! whoever looks or adds. Nothing is killed because of them: they are evidence, and `/run` is empty
//! after a boot, so an identity is never of another boot.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use lifemon_ebpf::ProcessId;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::trusted::{Directory, Distrust};
use crate::proc;
use crate::process::Who;

const RUN: &str = "/run";
const PARTS: [(&str, u32); 2] = [("lifemon", 0o755), ("left", 0o700)];

/// Orphans that are kept at most: more than a host that anybody looks after has.
const FILES_MAX: usize = 1_024;

/// Orphans that are kept of one tree: whoever may fill one shall not push out all others.
const OF_ONE_TREE_MAX: usize = 256;

/// Bytes of a file: an identity and a name of 15 bytes.
const BYTES_MAX: u64 = 4_096;

/// Times that a directory is made again that somebody removes just then, because it was empty.
const TRIES: u32 = 5;

/// Keeps the orphans of a tree. Where that is not possible it is a look less later, so it is no
/// error: the reason is logged.
pub fn keep(tree: &Who, orphans: &[Who]) {
    if let Err(distrust) = try_keep(tree, orphans) {
        log::info!("what was left behind is not remembered: {distrust}");
    }
}

/// Returns the orphans that are kept and still there, each with its tree.
#[must_use]
pub fn recall() -> Vec<(ProcessId, Who)> {
    let directories = match open() {
        Ok(Some(directories)) => directories,
        Ok(None) => return Vec::new(),
        Err(distrust) => {
            log::info!("what was left behind before is not known: {distrust}");
            return Vec::new();
        }
    };
    let kept = clean(&directories.left).unwrap_or_default();
    let kept = kept.into_iter().filter_map(|(id, name)| {
        let file = open_file(&directories.left, &name, OFlags::RDONLY).ok()?;
        let mut text = String::new();
        let read = File::from(file).take(BYTES_MAX).read_to_string(&mut text);
        read.ok()?;
        Some((id, serde_json::from_str(&text).ok()?))
    });
    let kept = kept.collect();
    directories.remove_unused();
    kept
}

/// The directories, each in the one before.
struct Directories {
    run: Directory,
    lifemon: Directory,
    left: Directory,
}

impl Directories {
    /// Removes what is empty.
    fn remove_unused(&self) {
        let [(lifemon, _), (left, _)] = PARTS;
        if self.lifemon.remove_directory(Path::new(left)).is_ok() {
            let _ = self.run.remove_directory(Path::new(lifemon));
        }
    }
}

fn try_keep(tree: &Who, orphans: &[Who]) -> Result<(), Distrust> {
    if orphans.is_empty() {
        return Ok(());
    }
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match keep_once(tree, orphans) {
            // Somebody has removed the directories, which were empty.
            Err(distrust) if tries > 0 && distrust.is_missing() => {}
            result => return result,
        }
    }
}

fn keep_once(tree: &Who, orphans: &[Who]) -> Result<(), Distrust> {
    let directories = make()?;
    let left = &directories.left;
    let room = FILES_MAX.saturating_sub(clean(left)?.len());
    let room = room.min(OF_ONE_TREE_MAX);
    if room < orphans.len() {
        let more = orphans.len() - room;
        log::info!("{more} of what was left behind are not remembered: there are too many");
    }
    let text = serde_json::to_vec(tree).unwrap_or_default();
    for orphan in orphans.iter().take(room) {
        let name = name_of(orphan.id);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        match open_file(left, &name, flags) {
            Ok(file) => {
                // Cut off by a full file system, it is no JSON, and not read.
                let _ = File::from(file).write_all(&text);
            }
            // Kept already.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(left.refused(&name.to_string_lossy(), errno)),
        }
    }
    Ok(())
}

/// Removes what is kept of processes that are gone, and what is not lifemon's; returns the rest.
fn clean(left: &Directory) -> Result<Vec<(ProcessId, OsString)>, Distrust> {
    let mut kept = Vec::new();
    for name in left.names()? {
        match id_of(&name).filter(|id| proc::is_live(*id)) {
            Some(id) => kept.push((id, name)),
            None => {
                let _ = left.remove_file(Path::new(&name));
            }
        }
    }
    Ok(kept)
}

fn make() -> Result<Directories, Distrust> {
    let run = Directory::open(Path::new(RUN))?;
    let run = run.ok_or_else(|| Distrust::missing(RUN))?;
    let [(lifemon, open), (left, closed)] = PARTS;
    let lifemon = run.make_part(lifemon, open)?;
    lifemon.check_is_roots()?;
    let left = lifemon.make_part(left, closed)?;
    checked(run, lifemon, left)
}

/// Opens them; `None` where nothing was kept.
fn open() -> Result<Option<Directories>, Distrust> {
    let [(lifemon, _), (left, _)] = PARTS;
    let Some(run) = Directory::open(Path::new(RUN))? else {
        return Ok(None);
    };
    let Some(lifemon) = Directory::open(&run.path().join(lifemon))? else {
        return Ok(None);
    };
    let Some(left) = lifemon.child(Path::new(left))? else {
        return Ok(None);
    };
    checked(run, lifemon, left).map(Some)
}

fn checked(run: Directory, lifemon: Directory, left: Directory) -> Result<Directories, Distrust> {
    lifemon.check_is_roots()?;
    left.check_is_private()?;
    left.check_is_beside(&lifemon)?;
    Ok(Directories { run, lifemon, left })
}

fn open_file(left: &Directory, name: &OsString, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(left, name.as_os_str(), flags, Mode::from_raw_mode(0o600))
}

fn name_of(id: ProcessId) -> OsString {
    format!("{}-{}", id.pid, id.start_ns).into()
}

fn id_of(name: &OsString) -> Option<ProcessId> {
    let (pid, start_ns) = name.to_str()?.split_once('-')?;
    Some(ProcessId::new(pid.parse().ok()?, start_ns.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_identity() {
        let id = ProcessId::new(77, 1_234_567_890);
        assert_eq!(id_of(&name_of(id)), Some(id));
        for other in ["", "77", "77-", "-5", "a-b", "77-5-6", "../77-5"] {
            assert_eq!(id_of(&other.into()), None, "{other}");
        }
    }
}

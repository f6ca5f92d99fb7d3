//! What an agent leaves for the next one: a file for each guard and each kill, in a directory that
//! is root's alone. A file is written beside its name and moved there: it is whole or not there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::text;

/// Bytes of a file at most.
const BYTES_MAX: u64 = 64 << 20;

/// A directory of files.
#[derive(Debug)]
pub(super) struct Store(PathBuf);

impl Store {
    /// Opens one below the state, which has been made.
    pub(super) fn open(state: &Path, name: &str) -> io::Result<Self> {
        let path = state.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Self(path))
    }

    /// Reads all files, in the order of their names. What cannot be read is left out, with a
    /// warning: it was not written by us, or stays for the next agent.
    pub(super) fn read_all<T: DeserializeOwned>(&self) -> Vec<T> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut paths: Vec<_> = files.map(|file| file.path()).collect();
        paths.sort_unstable();
        let left_out = |path: &Path, error: &dyn std::fmt::Display| {
            log::warn!("{} is left out: {error}", path.display());
        };
        let read = |path: PathBuf| {
            if path.extension().is_none_or(|kind| kind != "json") {
                // The rest of a writing that was interrupted.
                let _ = fs::remove_file(&path);
                return None;
            }
            let is_small = fs::metadata(&path).is_ok_and(|file| file.len() <= BYTES_MAX);
            let bytes = fs::read(&path).inspect_err(|error| left_out(&path, error));
            let bytes = bytes.ok().filter(|_| is_small)?;
            let read = serde_json::from_slice(&bytes);
            read.inspect_err(|error| left_out(&path, error)).ok()
        };
        paths.into_iter().filter_map(read).collect()
    }

    /// Writes one, whole.
    pub(super) fn write(&self, id: &str, value: &impl Serialize) -> io::Result<()> {
        let (beside, path) = (self.0.join(format!("{id}.new")), self.path(id));
        let write = || {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(&serde_json::to_vec(value)?)?;
            fs::rename(&beside, &path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&beside)))
    }

    /// Removes one.
    pub(super) fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.path(id));
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

/// Returns the id of this boot: identities of another are not of this one.
///
/// # Errors
/// When the kernel does not tell it, or no descriptor is left.
pub(super) fn boot() -> io::Result<String> {
    let id = text::read("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_not() {
        let name = format!("lifemon-store-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        let store = Store::open(&path, "kind").unwrap();
        store.write("a", &7_u32).unwrap();
        fs::write(path.join("kind/b.new"), "8").unwrap();
        fs::write(path.join("kind/c.json"), "9,").unwrap();
        assert_eq!(store.read_all::<u32>(), [7]);
        assert!(!path.join("kind/b.new").exists());
        store.remove("a");
        assert_eq!(store.read_all::<u32>(), [0; 0]);
        fs::remove_dir_all(&path).unwrap();
    }
}

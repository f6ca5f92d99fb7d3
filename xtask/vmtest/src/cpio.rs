//! Writes an initramfs: a cpio archive in the format that the kernel unpacks ("newc"). Not packed,
//! because unpacking in an emulated processor takes longer than reading.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Header and name, and content, each end at a multiple of this.
const ALIGNMENT: usize = 4;

/// An archive in memory. Directories come into it with the first thing in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<Vec<u8>>,
}

impl Archive {
    /// Adds an empty directory, or the ones above a path.
    pub(crate) fn directory(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        let name = name(path);
        if !name.is_empty() && self.directories.insert(name.to_vec()) {
            self.entry(name, DIRECTORY | 0o755, &[]);
        }
    }

    /// Adds a file with this content.
    pub(crate) fn file(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.above(path);
        self.entry(name(path), FILE | mode, content);
    }

    /// Adds a file of the host, at `path`.
    pub(crate) fn copy(&mut self, path: &Path, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &content);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &Path, target: &str) {
        self.above(path);
        self.entry(name(path), SYMLINK | 0o777, target.as_bytes());
    }

    /// Returns the whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(b"TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn above(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        // inode, mode, uid, gid, links, time, size, device (2), special device (2), name, checksum
        let fields: [u32; 13] = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size(content.len()),
            0,
            0,
            0,
            0,
            size(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(length, 0);
    }
}

/// Names in an archive have no leading slash.
fn name(path: &Path) -> &[u8] {
    let path = path.as_os_str().as_bytes();
    path.strip_prefix(b"/").unwrap_or(path)
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("files of less than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: names with modes and contents.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |at: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * at..][..8]).expect("digits");
                u32::from_str_radix(text, 16).expect("a number")
            };
            let (mode, size, length) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + length - 1].to_vec()).expect("a name");
            assert_eq!(bytes[110 + length - 1], 0);
            let start = (110 + length).next_multiple_of(ALIGNMENT);
            let content = bytes[start..start + size].to_vec();
            bytes = &bytes[(start + size).next_multiple_of(ALIGNMENT)..];
            assert_eq!((whole - bytes.len()) % ALIGNMENT, 0);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn everything_comes_back_with_its_directories_before_it() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), 0o755, b"hello");
        archive.link(Path::new("/a/l"), "b/c");
        archive.directory(Path::new("/proc"));
        let expected = [
            ("a", DIRECTORY | 0o755, &b""[..]),
            ("a/b", DIRECTORY | 0o755, b""),
            ("a/b/c", FILE | 0o755, b"hello"),
            ("a/l", SYMLINK | 0o777, b"b/c"),
            ("proc", DIRECTORY | 0o755, b""),
        ];
        let expected = expected.map(|(name, mode, text)| (name.to_owned(), mode, text.to_vec()));
        assert_eq!(read(&archive.finish()), expected);
    }

    #[test]
    fn an_empty_archive_is_only_its_end() {
        assert_eq!(read(&Archive::default().finish()), []);
    }
}

//! Memory that all processes of a behaviour share, on a file that the test reads: what they count
//! there stays known when every one of them has been killed.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::args::Args;
use crate::talk::fail;

/// Maps the first `count` words of the file, zero at first, mapped until the process ends.
pub(crate) fn words(path: &Path, count: usize) -> &'static [AtomicU64] {
    let bytes = count * size_of::<AtomicU64>();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .and_then(|file| file.set_len(bytes as u64).map(|()| file));
    let file = file.unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
    let length = NonZeroUsize::new(bytes).unwrap_or_else(|| fail("no words to share"));
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) };
    let start = start.unwrap_or_else(|errno| fail(&format!("mmap: {errno}")));
    // SAFETY: mapped for `count` words, aligned to a page, never unmapped. Every process changes
    // them atomically, and the test only reads the file.
    unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), count) }
}

/// What bounds a bomb: a count of the processes made, which none of them may exceed.
#[derive(Clone, Copy)]
pub(crate) struct Fuse {
    made: &'static AtomicU64,
    max: u64,
}

impl Fuse {
    /// Takes the count that is the first word of the file that the next argument names.
    pub(crate) fn from_args(args: &mut Args, max: u64) -> Self {
        Self::all_from_args::<1>(args, max)[0]
    }

    /// Takes several counts, in the first words of the file.
    pub(crate) fn all_from_args<const N: usize>(args: &mut Args, max: u64) -> [Self; N] {
        let made = words(&args.path("file"), N);
        std::array::from_fn(|index| Self {
            made: &made[index],
            max,
        })
    }

    /// Returns whether one more process may be made.
    pub(crate) fn burn(&self) -> bool {
        self.made.fetch_add(1, Ordering::Relaxed) < self.max
    }

    pub(crate) fn burnt(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

//! Map memory that the kernel half and userspace share, as atomic words.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An mmapped array map of `T`.
#[derive(Debug)]
pub(super) struct Shared<T> {
    base: NonNull<T>,
    length: usize,
    bytes: NonZeroUsize,
    _of: PhantomData<T>,
}

// SAFETY: the memory is plain words that the kernel changes as well; it is only reached through
// atomic operations.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Maps the `length` elements of `map`, whose value is `T`.
    pub(super) fn new(map: impl AsFd, length: usize) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let bytes = NonZeroUsize::new((length * size_of::<T>()).next_multiple_of(PAGE))
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new shared mapping, of a size that the kernel checks against the map.
        let base = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )?
        };
        Ok(Self {
            base: base.cast(),
            length,
            bytes,
            _of: PhantomData,
        })
    }

    /// The element at `index`.
    ///
    /// # Panics
    /// When there is no such element: an index out of range is a mistake of the caller.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.length, "slot {index} of {}", self.length);
        // SAFETY: in range, see above.
        unsafe { self.base.add(index).as_ptr() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; references into it end with `self`.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

/// A 64-bit word of shared memory.
///
/// # Safety
/// `word` points into a live [`Shared`] mapping and is 8-byte aligned.
pub(super) unsafe fn word64<'a>(word: *mut u64) -> &'a AtomicU64 {
    // SAFETY: passed on to the caller.
    unsafe { AtomicU64::from_ptr(word) }
}

/// A 32-bit word of shared memory.
///
/// # Safety
/// `word` points into a live [`Shared`] mapping and is 4-byte aligned.
pub(super) unsafe fn word32<'a>(word: *mut u32) -> &'a AtomicU32 {
    // SAFETY: passed on to the caller.
    unsafe { AtomicU32::from_ptr(word) }
}

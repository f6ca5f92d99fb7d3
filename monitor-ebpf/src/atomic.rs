//! Words in maps that userspace or other processors change at the same time.
//!
//! On this target `AtomicU64` has no read-modify-write methods; the intrinsics below them compile
//! to the one instruction that the kernel knows. They are called here alone.

use core::cell::UnsafeCell;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg, atomic_xsub};

const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;

/// A 64-bit word that is changed by atomic operations alone.
#[repr(transparent)]
pub(crate) struct Counter(UnsafeCell<u64>);

impl Counter {
    /// Takes the word that `word` points to for a counter.
    ///
    /// # Safety
    /// `word` points into a map value that cannot be recycled while the counter is used.
    #[inline(always)]
    pub(crate) unsafe fn at<'a>(word: *mut u64) -> &'a Self {
        // SAFETY: passed on to the caller; a map value is 8-byte aligned, the layout is the same.
        unsafe { &*word.cast::<Self>() }
    }

    /// Reads once, in no order with what else this program does.
    #[inline(always)]
    pub(crate) fn read(&self) -> u64 {
        // SAFETY: a reference points to valid memory; volatile, because others change it.
        unsafe { self.0.get().read_volatile() }
    }

    /// Reads after everything that this program did before is visible to all.
    #[inline(always)]
    pub(crate) fn fetch(&self) -> u64 {
        // SAFETY: a reference points to valid, aligned memory.
        unsafe { atomic_xadd::<u64, u64, ORDER>(self.0.get(), 0) }
    }

    /// Adds 1.
    #[inline(always)]
    pub(crate) fn increment(&self) {
        // SAFETY: a reference points to valid, aligned memory.
        unsafe { atomic_xadd::<u64, u64, ORDER>(self.0.get(), 1) };
    }

    /// Adds `value`, around the end of the numbers.
    #[inline(always)]
    pub(crate) fn add(&self, value: u64) {
        // SAFETY: a reference points to valid, aligned memory.
        unsafe { atomic_xadd::<u64, u64, ORDER>(self.0.get(), value) };
    }

    /// Adds 1 and returns what was there.
    #[inline(always)]
    pub(crate) fn next(&self) -> u64 {
        // The linker knows a form of the subtraction that answers, and none of the addition.
        // SAFETY: a reference points to valid, aligned memory.
        let before = unsafe { atomic_xsub::<u64, u64, ORDER>(self.0.get(), u64::MAX) };
        black_box(before)
    }

    /// Takes 1 away and returns what is left. Everything that this program did before is visible to
    /// all by then.
    #[inline(always)]
    pub(crate) fn decrement(&self) -> u64 {
        // SAFETY: a reference points to valid, aligned memory.
        let before = unsafe { atomic_xsub::<u64, u64, ORDER>(self.0.get(), 1) };
        // An instruction whose answer nobody wants has a form that orders nothing.
        black_box(before).wrapping_sub(1)
    }

    /// Puts `value` there and returns what was there.
    #[inline(always)]
    pub(crate) fn exchange(&self, value: u64) -> u64 {
        // SAFETY: a reference points to valid, aligned memory.
        unsafe { atomic_xchg::<u64, ORDER>(self.0.get(), value) }
    }

    /// Puts `value` there if `expected` is there; returns whether it did.
    #[inline(always)]
    pub(crate) fn replace(&self, expected: u64, value: u64) -> bool {
        // SAFETY: a reference points to valid, aligned memory.
        unsafe { atomic_cxchg::<u64, ORDER, ORDER>(self.0.get(), expected, value).1 }
    }
}

/// A value that userspace writes and the kernel half only reads.
#[repr(transparent)]
pub(crate) struct Given<T>(UnsafeCell<T>);

impl<T: Copy> Given<T> {
    /// Reads once.
    #[inline(always)]
    pub(crate) fn read(&self) -> T {
        // SAFETY: a reference points to valid memory; volatile, because userspace changes it.
        unsafe { self.0.get().read_volatile() }
    }
}

//! Atomic changes of 64-bit words in maps. On this target `AtomicU64` has no read-modify-write
//! methods; the intrinsics below them compile to the one instruction that the kernel knows.

use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg, atomic_xsub};

/// Adds 1.
///
/// # Safety
/// `word` points into a map value that cannot be recycled while this runs.
#[inline(always)]
pub(crate) unsafe fn increment(word: *mut u64) {
    // SAFETY: passed on to the caller; a map value is 8-byte aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, 1) };
}

/// What is there, read after everything that this program did before is visible to all.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn fetch(word: *mut u64) -> u64 {
    // SAFETY: passed on to the caller; a map value is 8-byte aligned.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, 0) }
}

/// Takes 1 away; what is left. Everything that this program did before is visible to all by then.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn decrement(word: *mut u64) -> u64 {
    // SAFETY: passed on to the caller; a map value is 8-byte aligned.
    let before = unsafe { atomic_xsub::<u64, u64, { AtomicOrdering::SeqCst }>(word, 1) };
    // An instruction whose answer nobody wants has a form that orders nothing.
    black_box(before).wrapping_sub(1)
}

/// Puts `value` there; what was there.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, value: u64) -> u64 {
    // SAFETY: passed on to the caller; a map value is 8-byte aligned.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word, value) }
}

/// Puts `value` there if `expected` is; whether it did.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn replace(word: *mut u64, expected: u64, value: u64) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: passed on to the caller; a map value is 8-byte aligned.
    unsafe { atomic_cxchg::<u64, ORDER, ORDER>(word, expected, value).1 }
}

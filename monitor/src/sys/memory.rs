//! The memory that the allocator keeps for itself.

/// Lets all threads allocate from one heap. By default glibc makes one for each thread, up to eight
/// for each processor, and what was freed in one is of no use in the others. To be called before
/// there are threads.
#[cfg(feature = "agent")]
pub(crate) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it sets a number of the allocator, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns free memory to the kernel.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it only returns free memory to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}

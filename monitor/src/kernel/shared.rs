//! Map memory that the kernel half and userspace share: views of it whose fields are atomic, so
//! that reading and changing them needs no `unsafe`. Their layout is checked against the ABI.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lifemon_ebpf::{Host, Pass, ProcessId, Tree};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

lifemon_ebpf::view! {
    /// A slot of a watched tree, as userspace sees it.
    #[cfg_attr(test, derive(Default))]
    TreeView of Tree {
        live: AtomicU64,
        forks: AtomicU64,
        execs: AtomicU64,
        exits: AtomicU64,
        condemned: AtomicU64,
        lost_events: AtomicU64,
        lost_members: AtomicU64,
        lost_records: AtomicU64,
        sleeping: AtomicU64,
        root: Identity,
        owner: Identity,
        generation: AtomicU32,
        layer: AtomicU32,
    }
}

lifemon_ebpf::view! {
    /// The state of the whole tracker, as userspace sees it.
    #[cfg_attr(test, derive(Default))]
    HostView of Host {
        layers: AtomicU64,
        learning: AtomicU64,
        learners: AtomicU64,
        since_ns: AtomicU64,
        release_overruns: AtomicU64,
        condemned_layers: AtomicU64,
        failed_deletes: AtomicU64,
        learnt_misses: AtomicU64,
        compacted_at: AtomicU64,
    }
}

lifemon_ebpf::view! {
    /// The task and the findings of a pass, as userspace sees them.
    PassView of Pass {
        kind: AtomicU32,
        slot: AtomicU32,
        generation: AtomicU32,
        layer: AtomicU32,
        root: Identity,
        seen: AtomicU64,
        inserted: AtomicU64,
        unrecorded: AtomicU64,
        unsettled: AtomicU64,
        conflicts: AtomicU64,
        failed: AtomicU64,
    }
}

/// The counters of a slot at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Members alive.
    pub live: u64,
    /// Members created.
    pub forks: u64,
    /// Members that died.
    pub exits: u64,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Members that could not be inserted.
    pub lost_members: u64,
    /// Processes without a record.
    pub lost_records: u64,
}

impl Counters {
    /// Reads the counters of a slot.
    pub(super) fn read(tree: &TreeView) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Self {
            live: read(&tree.live),
            forks: read(&tree.forks),
            exits: read(&tree.exits),
            lost_events: read(&tree.lost_events),
            lost_members: read(&tree.lost_members),
            lost_records: read(&tree.lost_records),
        }
    }
}

/// A process identity in shared memory. It is written under the lock of the tracker, before the
/// word that says that it counts; whoever reads it without the lock can see half of a new one.
#[repr(C)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Identity {
    start_ns: AtomicU64,
    pid: AtomicU32,
    zero: AtomicU32,
}

impl Identity {
    /// Reads it.
    pub(super) fn get(&self) -> ProcessId {
        let pid = self.pid.load(Ordering::Relaxed);
        ProcessId::new(pid, self.start_ns.load(Ordering::Relaxed))
    }

    /// Writes it. Under the lock.
    pub(super) fn set(&self, id: ProcessId) {
        self.start_ns.store(id.start_ns, Ordering::Relaxed);
        self.pid.store(id.pid, Ordering::Relaxed);
        self.zero.store(0, Ordering::Relaxed);
    }
}

impl PassView {
    /// Asks the next pass for what `wanted` says, with nothing found. Under the lock, and no pass
    /// runs.
    pub(super) fn ask(&self, wanted: &Pass) {
        self.kind.store(wanted.kind, Ordering::SeqCst);
        self.slot.store(wanted.slot, Ordering::SeqCst);
        self.generation.store(wanted.generation, Ordering::SeqCst);
        self.layer.store(wanted.layer, Ordering::SeqCst);
        self.root.set(wanted.root);
        let counters = [
            &self.seen,
            &self.inserted,
            &self.unrecorded,
            &self.unsettled,
            &self.conflicts,
            &self.failed,
        ];
        for counter in counters {
            counter.store(0, Ordering::SeqCst);
        }
    }
}

/// A type that may be reached through a reference into shared memory.
///
/// # Safety
/// Every field is atomic and any bytes are valid.
pub(super) unsafe trait View {}

// SAFETY: atomic integers only.
unsafe impl View for TreeView {}
// SAFETY: atomic integers only.
unsafe impl View for HostView {}
// SAFETY: atomic integers only.
unsafe impl View for PassView {}

/// A mapped array map, whose values `T` views.
#[derive(Debug)]
pub(super) struct Shared<T> {
    base: NonNull<T>,
    length: usize,
    bytes: NonZeroUsize,
    _of: PhantomData<T>,
}

// SAFETY: the memory is reached through atomic operations alone, and belongs to no thread.
unsafe impl<T: View> Send for Shared<T> {}
// SAFETY: the memory is reached through atomic operations alone.
unsafe impl<T: View> Sync for Shared<T> {}

impl<T: View> Shared<T> {
    /// Maps the `length` elements of `map`, whose values `T` views.
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

    /// Returns the element at `index`.
    ///
    /// # Panics
    /// When there is no such element: an index out of range is a mistake of the caller.
    pub(super) fn at(&self, index: usize) -> &T {
        assert!(index < self.length, "slot {index} of {}", self.length);
        // SAFETY: in range, in a mapping that lives as long as `self`; page-aligned at its start,
        // and a `View` is valid whatever the bytes are and whoever changes them.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; references into it end with `self`.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

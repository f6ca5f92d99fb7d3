//! Every map, and the constants that userspace sets before the programs are loaded.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lifemon_ebpf::{
    Event, Host, MemberKey, Membership, Pass, ProcessId, Record, SignalFact, Tree, limits,
    offsets::Offsets,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Who created whom: every process of the host, and the ghosts.
#[btf_map]
pub(crate) static LINEAGE: HashMap<ProcessId, Record, { limits::LINEAGE_RECORDS as usize }> =
    HashMap::new();

/// Which process is in which watched tree.
#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, Membership, { limits::MEMBERSHIPS as usize }> =
    HashMap::new();

/// Processes that have not been seen to exit. Only for kernels that do not say which thread is
/// the last, or where two hooks see each exit: the delete that succeeds is the one exit. Elsewhere it
/// has a single, unused entry.
#[btf_map]
pub(crate) static ALIVE: HashMap<ProcessId, u64, { limits::LINEAGE_RECORDS as usize }> =
    HashMap::new();

/// Roots of watched trees: their ghosts are not spliced.
#[btf_map]
pub(crate) static ROOTS: HashMap<ProcessId, u64, { limits::TREE_SLOTS as usize }> = HashMap::new();

/// The slots of watched trees, shared with userspace. Slot 0 is the host.
#[btf_map]
pub(crate) static TREES: Array<Tree, { limits::TREE_SLOTS as usize }, MMAPABLE> = Array::new();

/// The watcher's own ring for each slot; none there: the slot only counts.
#[btf_map]
pub(crate) static RINGS: ArrayOfMaps<
    RingBuf<Event, { limits::RING_BYTES as usize }>,
    { limits::TREE_SLOTS as usize },
> = ArrayOfMaps::new();

/// What holds for the whole tracker.
#[btf_map]
pub(crate) static HOST: Array<Host, 1, MMAPABLE> = Array::new();

/// What the running pass is asked for, and what it found.
#[btf_map]
pub(crate) static PASS: Array<Pass, 1, MMAPABLE> = Array::new();

/// Last fatal signal of a process.
#[btf_map]
pub(crate) static SIGNALS: LruHashMap<ProcessId, SignalFact, { limits::SIGNAL_FACTS as usize }> =
    LruHashMap::new();

/// Thread id that the out-of-memory killer chose -> when, ns since boot.
#[btf_map]
pub(crate) static OOM_VICTIMS: LruHashMap<u32, u64, { limits::OOM_FACTS as usize }> =
    LruHashMap::new();

/// Room for what is too large for the 512 bytes of stack.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) event: Event,
    pub(crate) record: Record,
}

/// One room for each program that needs one and can be attached beside others. A hook never interrupts itself on its CPU (the kernel skips such a
/// run and counts it), but one hook can interrupt another.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 7> = PerCpuArray::new();

/// Whose room.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    Fork = 0,
    Exec = 1,
    Exit = 2,
    Signal = 3,
    ExitGuarded = 4,
    LearnByPass = 5,
    LearnByExit = 6,
}

/// The room of `hook` on this CPU, with what its last run left there.
#[inline(always)]
pub(crate) fn scratch<'a>(hook: Hook) -> Option<&'a mut Scratch> {
    // SAFETY: an array element is always there, and nobody else uses this one while the hook runs.
    SCRATCH
        .get_ptr_mut(hook as u32)
        .map(|room| unsafe { &mut *room })
}

/// Where the fields of kernel structures are.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets::UNKNOWN);

/// 1 where the exit tracepoint says which thread is the last of its group (6.16 and later).
#[unsafe(no_mangle)]
pub(crate) static HAS_GROUP_DEAD: Global<u32> = Global::new(0);

/// 1 where an exit must be claimed through `ALIVE`.
#[unsafe(no_mangle)]
pub(crate) static CLAIMS_EXITS: Global<u32> = Global::new(0);

/// 1 where the tracepoint of the out-of-memory killer passes a task (6.8 and later), not a pid.
#[unsafe(no_mangle)]
pub(crate) static OOM_ARG_IS_TASK: Global<u32> = Global::new(0);

/// A slot of a watched tree.
#[inline(always)]
pub(crate) fn tree(slot: u32) -> Option<*mut Tree> {
    TREES.get_ptr_mut(slot)
}

/// What holds for the whole tracker.
#[inline(always)]
pub(crate) fn host() -> Option<*mut Host> {
    HOST.get_ptr_mut(0)
}

/// Whether the processes that existed before are still being learnt.
#[inline(always)]
pub(crate) fn is_learning() -> bool {
    // SAFETY: an array element is always there; userspace writes the word, so it is read once.
    host().is_some_and(|host| unsafe { (&raw const (*host).learning).read_volatile() } != 0)
}

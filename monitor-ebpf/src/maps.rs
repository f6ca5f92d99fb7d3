//! Every map, and the constants that userspace sets before the programs are loaded.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lifemon_ebpf::{
    Event, Host, LogEntry, LogShare, MemberKey, Membership, Pass, ProcessId, Record, Recorder,
    SignalFact, Tree, limits, offsets::Offsets,
};

use crate::atomic::{Counter, Given};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// The lineage: every process of the host, and the ghosts.
#[btf_map]
pub(crate) static LINEAGE: HashMap<ProcessId, Record, { limits::LINEAGE_RECORDS as usize }> =
    HashMap::new();

/// The memberships of processes in watched trees.
#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, Membership, { limits::MEMBERSHIPS as usize }> =
    HashMap::new();

/// Processes that have not been seen to exit. Only for kernels that do not say which thread is the
/// last, or where two hooks see each exit: the delete that succeeds is the one exit. Elsewhere it
/// has a single, unused entry.
#[btf_map]
pub(crate) static ALIVE: HashMap<ProcessId, u64, { limits::LINEAGE_RECORDS as usize }> =
    HashMap::new();

/// Roots of watched trees: their ghosts are not spliced.
#[btf_map]
pub(crate) static ROOTS: HashMap<ProcessId, u64, { limits::TREE_SLOTS as usize }> = HashMap::new();

/// The slots of watched trees, shared with userspace. Slot 0 is the host.
#[btf_map]
static TREES: Array<Tree, { limits::TREE_SLOTS as usize }, MMAPABLE> = Array::new();

/// The watcher's own ring for each slot; none there: the slot only counts.
#[btf_map]
pub(crate) static RINGS: ArrayOfMaps<
    RingBuf<Event, { limits::RING_BYTES as usize }>,
    { limits::TREE_SLOTS as usize },
> = ArrayOfMaps::new();

/// The state of the whole tracker.
#[btf_map]
static HOST: Array<Host, 1, MMAPABLE> = Array::new();

/// The task and the findings of the running pass.
#[btf_map]
static PASS: Array<Pass, 1, MMAPABLE> = Array::new();

/// Last fatal signal of a process.
#[btf_map]
pub(crate) static SIGNALS: LruHashMap<ProcessId, SignalFact, { limits::SIGNAL_FACTS as usize }> =
    LruHashMap::new();

/// The flight recorder: the host's last deaths that somebody may ask about.
#[btf_map]
pub(crate) static LOG: Array<LogEntry, { limits::LOG_ENTRIES as usize }> = Array::new();

/// The share of each user in it. Elements are never deleted.
#[btf_map]
pub(crate) static LOG_SHARES: HashMap<u32, LogShare, { limits::LOG_USERS as usize }> =
    HashMap::new();

/// The state of the flight recorder.
#[btf_map]
static RECORDER: Array<Recorder, 1, MMAPABLE> = Array::new();

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

/// One room for each program that needs one and can be attached beside others. A hook never
/// interrupts itself on its CPU (the kernel skips such a run and counts it), but one hook can
/// interrupt another.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/trace/bpf_trace.c?h=v6.12.118#n2320>
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 8> = PerCpuArray::new();

/// The room of a program in `SCRATCH`.
#[derive(Clone, Copy)]
pub(crate) enum Room {
    Fork = 0,
    Exec = 1,
    Exit = 2,
    Signal = 3,
    ExitGuarded = 4,
    LearnByPass = 5,
    LearnByExit = 6,
    Rename = 7,
}

/// Returns `room` on this CPU, with what its last run left there.
#[inline(always)]
pub(crate) fn scratch<'a>(room: Room) -> Option<&'a mut Scratch> {
    // SAFETY: an array element is always there, and nobody else uses this one while its program
    // runs.
    SCRATCH
        .get_ptr_mut(room as u32)
        .map(|room| unsafe { &mut *room })
}

/// The offsets of the fields of kernel structures.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets::UNKNOWN);

/// 1 where the exit tracepoint says which thread is the last of its group (6.16 and later).
#[unsafe(no_mangle)]
pub(crate) static HAS_GROUP_DEAD: Global<u32> = Global::new(0);

/// Major numbers of the devices that are GPUs; 0 behind the last one.
#[unsafe(no_mangle)]
pub(crate) static GPU_MAJORS: Global<[u32; 5]> = Global::new([0; 5]);

/// 1 where an exit must be claimed through `ALIVE`.
#[unsafe(no_mangle)]
pub(crate) static CLAIMS_EXITS: Global<u32> = Global::new(0);

/// 1 where the tracepoint of the out-of-memory killer passes a task (6.8 and later), not a pid.
#[unsafe(no_mangle)]
pub(crate) static OOM_ARG_IS_TASK: Global<u32> = Global::new(0);

lifemon_ebpf::view! {
    /// A slot of a watched tree, as the kernel half sees it.
    TreeView of Tree {
        live: Counter,
        forks: Counter,
        execs: Counter,
        exits: Counter,
        condemned: Counter,
        lost_events: Counter,
        lost_members: Counter,
        lost_records: Counter,
        sleeping: Counter,
        root: Given<ProcessId>,
        owner: Given<ProcessId>,
        generation: Given<u32>,
        layer: Given<u32>,
    }
}

lifemon_ebpf::view! {
    /// The state of the whole tracker, as the kernel half sees it.
    HostView of Host {
        layers: Counter,
        learning: Counter,
        learners: Counter,
        since_ns: Counter,
        release_overruns: Counter,
        condemned_layers: Counter,
        failed_deletes: Counter,
        learnt_misses: Counter,
        compacted_at: Counter,
    }
}

lifemon_ebpf::view! {
    /// The task and the findings of the running pass, as the kernel half sees it.
    PassView of Pass {
        kind: Given<u32>,
        slot: Given<u32>,
        generation: Given<u32>,
        layer: Given<u32>,
        root: Given<ProcessId>,
        seen: Counter,
        inserted: Counter,
        unrecorded: Counter,
        unsettled: Counter,
        conflicts: Counter,
        failed: Counter,
    }
}

lifemon_ebpf::view! {
    /// The state of the flight recorder, as the kernel half sees it.
    RecorderView of Recorder {
        recorded: Counter,
        overwritten: Counter,
        users: Counter,
        growths: Counter,
        shared: Counter,
    }
}

/// Returns the state of the flight recorder.
#[inline(always)]
pub(crate) fn recorder<'a>() -> Option<&'a RecorderView> {
    // SAFETY: an array element is always there, and its view has its layout.
    RECORDER
        .get_ptr_mut(0)
        .map(|state| unsafe { &*state.cast::<RecorderView>() })
}

/// Returns a slot of a watched tree; slot 0 is the host.
#[inline(always)]
pub(crate) fn tree<'a>(slot: u32) -> Option<&'a TreeView> {
    // SAFETY: an array element is always there, and its view has its layout.
    TREES
        .get_ptr_mut(slot)
        .map(|tree| unsafe { &*tree.cast::<TreeView>() })
}

/// Returns what holds for the whole tracker.
#[inline(always)]
pub(crate) fn host<'a>() -> Option<&'a HostView> {
    // SAFETY: an array element is always there, and its view has its layout.
    HOST.get_ptr_mut(0)
        .map(|host| unsafe { &*host.cast::<HostView>() })
}

/// Returns what the running pass is asked for, and what it found.
#[inline(always)]
pub(crate) fn pass<'a>() -> Option<&'a PassView> {
    // SAFETY: an array element is always there, and its view has its layout.
    PASS.get_ptr_mut(0)
        .map(|pass| unsafe { &*pass.cast::<PassView>() })
}

/// Returns whether the processes that existed before are still being learnt.
#[inline(always)]
pub(crate) fn is_learning() -> bool {
    host().is_some_and(|host| host.learning.read() != 0)
}

//! The layout of everything that crosses between the kernel half and userspace.
//! No implicit padding; sizes are asserted at compile time. A change here is a new [`ABI`].

/// Version of the layout and meaning of every map. It is part of the pin path, so that a binary
/// never opens the maps of another version.
pub const ABI: u32 = 5;

/// A process (a thread group), for ever: the pid alone is reused, the pair is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "crate::json::IdJson", from = "crate::json::IdJson")
)]
pub struct ProcessId {
    /// `start_boottime` of the group leader, in ns since boot, suspend included. It survives exec,
    /// also by a thread that is not the leader.
    pub start_ns: u64,
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    zero: u32,
}

impl ProcessId {
    /// Nobody: no process has pid 0.
    pub const NONE: Self = Self::new(0, 0);

    /// Returns the process with this thread group id that started at `start_ns`.
    #[must_use]
    #[inline(always)]
    pub const fn new(pid: u32, start_ns: u64) -> Self {
        Self {
            start_ns,
            pid,
            zero: 0,
        }
    }

    /// Returns whether this names no process at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.pid == 0
    }
}

/// State of a record: the process can run.
pub const LIVE: u64 = 1;
/// State of a record: no thread of the process can return to user code. With references left it
/// is a ghost.
pub const DEAD: u64 = 2;

/// [`Record::origin`]: older than tracking, so its creator is the parent that was found.
pub const INFERRED: u32 = 1;

/// [`Record::holds_creator`]: it does not: there is no creator, or none that has a record.
pub const NOT_HELD: u64 = 0;
/// [`Record::holds_creator`]: it counts in its creator's references.
pub const HELD: u64 = 1;
/// [`Record::holds_creator`]: not yet: its creator is older than tracking and will be learnt. Where
/// that is left over when learning ends, the line above is not known.
pub const CREATOR_DUE: u64 = 2;
/// [`Record::holds_creator`]: the same, of who stands for the creator of a process that is itself
/// older.
pub const ANCESTOR_DUE: u64 = 3;
/// [`Record::holds_creator`]: its creator is a process that had no record when it created this one,
/// because the map was full or the hook was skipped. So nobody can say what it descends from.
pub const CREATOR_LOST: u64 = 4;

/// [`Record::claim`]: nobody's.
pub const FREE: u64 = 0;
/// [`Record::claim`]: its link is being changed, so it stays; with the pid in the bits above.
pub const BUSY: u64 = 1;
/// [`Record::claim`]: it is being removed; with the pid in the bits above.
pub const TAKEN: u64 = 2;

/// [`Record::exit_flags`], [`Event::flags`]: the out-of-memory killer chose it.
pub const OOM_KILLED: u32 = 1;
/// [`Record::exit_flags`], [`Event::flags`]: `sender` names the process that sent the signal.
pub const SENDER_KNOWN: u32 = 2;
/// [`Record::exit_flags`], [`Event::flags`]: the kernel itself sent the signal.
pub const SENT_BY_KERNEL: u32 = 4;
/// [`Record::exit_flags`]: the kernel skipped the exit hook for it, so how it died is not known,
/// and `exit_ns` is when that was noticed.
pub const EXIT_UNSEEN: u32 = 8;
/// [`Record::exit_flags`], [`Event::flags`]: the signal is the one that the process wanted to get
/// at the death of its parent, which is the sender.
pub const PARENT_DEATH: u32 = 16;
/// [`LogEntry::flags`] alone: it had the device file of a GPU open.
pub const HELD_GPU: u32 = 32;

/// The sums of the identities of some processes, around the end of the numbers: where there is one,
/// who that is. Userspace does not need it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Of their pids.
    pub pids: u64,
    /// Of their starts, in ns since boot.
    pub starts: u64,
}

impl Holders {
    /// Returns who it is if there is only one. Whoever is named so has to be asked: while the sums
    /// change it is anybody.
    #[must_use]
    #[inline(always)]
    pub const fn only(&self) -> ProcessId {
        ProcessId::new(self.pids as u32, self.starts)
    }
}

/// The record of one process: the value of the lineage map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The process that called fork or clone; [`ProcessId::NONE`] when unknown.
    pub creator: ProcessId,
    /// Itself while it lives, plus the records that hold it as their creator. Atomic.
    pub references: u64,
    /// Whoever holds it as their creator. Atomic.
    pub holders: Holders,
    /// [`LIVE`] or [`DEAD`]. Atomic.
    pub state: u64,
    /// [`HELD`] and so on. Written by the inserter and the splice; what is due is given once, by an
    /// atomic exchange.
    pub holds_creator: u64,
    /// [`FREE`], or who changes or removes this record. Atomic.
    pub claim: u64,
    /// The time of its death, in ns since boot; 0 while it lives.
    pub exit_ns: u64,
    /// Its cgroup v2 when it was created, last called exec, or died.
    pub cgroup_id: u64,
    /// The time of its last exec, in ns since boot; 0 while it runs what its creator ran.
    pub exec_ns: u64,
    /// The sender of the signal that ended it; see [`SENDER_KNOWN`].
    pub sender: ProcessId,
    /// `comm` of that sender when it sent.
    pub sender_name: [u8; 16],
    /// `comm`: as forked, as of the last exec, and at death.
    pub name: [u8; 16],
    /// Status as `wait(2)` gives it; meaningful once [`DEAD`].
    pub status: u32,
    /// [`OOM_KILLED`] and so on; written by the exit hook alone.
    pub exit_flags: u32,
    /// [`INFERRED`]; written by whoever inserted the record, or gave it the creator that was due.
    pub origin: u32,
    /// Ghosts that were spliced out between this record and `creator`.
    pub elided: u32,
    /// 1 if one of those died by a signal other than SIGHUP, of memory, or with a code other than
    /// 0.
    pub elided_badly: u32,
    /// Its session when it was created or last called exec: the pid of the leader.
    pub session: u32,
    /// Real user id.
    pub uid: u32,
    /// Its pid in its own pid namespace.
    pub ns_pid: u32,
}

impl Record {
    /// Returns whether it died by a signal other than the hang-up of a terminal, of memory, or with
    /// a code other than 0; false while it lives and where its death was not seen.
    #[must_use]
    #[inline(always)]
    pub const fn died_badly(&self) -> bool {
        died_badly(self.status)
    }
}

/// The condemnation of a whole tree.
pub const CONDEMNED: u64 = 1;

/// Returns the condemnation of those members of a tree whose real user is `uid`, at the time when
/// they pass the closer.
#[must_use]
#[inline(always)]
pub const fn condemned_by(uid: u32) -> u64 {
    uid as u64 + 2
}

/// Returns whether a condemnation is meant for a process with this real user id.
#[must_use]
#[inline(always)]
pub const fn is_meant(condemned: u64, uid: u32) -> bool {
    condemned == CONDEMNED || condemned == condemned_by(uid)
}

/// Returns whether a status, as `wait(2)` gives it, is that of a death by a signal other than
/// SIGHUP, or with a code other than 0.
#[must_use]
#[inline(always)]
pub const fn died_badly(status: u32) -> bool {
    const SIGHUP: u32 = 1;
    let signal = status & 0x7f;
    (signal != 0 && signal != SIGHUP) || (signal == 0 && status >> 8 & 0xff != 0)
}

/// Key of the membership map: a process is in at most one tree of each layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberKey {
    /// The member.
    pub process: ProcessId,
    /// Below [`crate::limits::LAYERS`].
    pub layer: u32,
    zero: u32,
}

impl MemberKey {
    /// Returns the membership of `process` in the tree that has `layer`.
    #[must_use]
    #[inline(always)]
    pub const fn new(process: ProcessId, layer: u32) -> Self {
        Self {
            process,
            layer,
            zero: 0,
        }
    }
}

/// Value of the membership map. Inserted once, never changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Index into the trees.
    pub slot: u32,
    /// The generation of the slot that this belongs to; another one is stale.
    pub generation: u32,
}

/// One slot of a watched tree, in memory that the kernel half and userspace share.
/// All fields that change while the tree is watched are changed by atomic operations alone.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Tree {
    /// Members alive. It never under-counts, and 0 is absorbing: the proof of extinction.
    pub live: u64,
    /// Members created since the slot was taken (host slot: all processes).
    pub forks: u64,
    /// Execs of members.
    pub execs: u64,
    /// Members that died (host slot: all processes).
    pub exits: u64,
    /// Other than 0 once the tree is condemned: what is a member, and what a member creates, shall
    /// die. [`CONDEMNED`], or [`condemned_by`] where only the members of one user shall.
    pub condemned: u64,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Members that could not be inserted because the membership map was full.
    pub lost_members: u64,
    /// Processes that have no record because the lineage map was full.
    pub lost_records: u64,
    /// 1 while the watcher sleeps and wants to be woken; whoever takes it to 0 wakes.
    pub sleeping: u64,
    /// The watched root.
    pub root: ProcessId,
    /// The watcher: when it is dead, the slot is free to be reclaimed.
    pub owner: ProcessId,
    /// Odd while in use. Changed when taken and when given back.
    pub generation: u32,
    /// The layer of its memberships.
    pub layer: u32,
}

/// The state of the whole tracker, in shared memory.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Host {
    /// Bit n: some tree uses layer n. Set before a tree is labelled, cleared after its last
    /// membership is gone.
    pub layers: u64,
    /// Not 0 while the processes that existed before are being learnt: records are not removed
    /// then. [`LEARNING`], and at last [`LEARNING_ENDS`].
    pub learning: u64,
    /// Deaths that are being learnt at this moment.
    pub learners: u64,
    /// The time when every process had been learnt, in ns since boot; 0 before.
    pub since_ns: u64,
    /// Deaths that had more ghosts to remove than they may; the sweep finds those.
    pub release_overruns: u64,
    /// Bit n: some tree of layer n is condemned.
    pub condemned_layers: u64,
    /// Deletions that the kernel refused, although the element was there: what they leave behind is
    /// found by comparison with the records.
    pub failed_deletes: u64,
    /// Skipped forks after which everybody was learnt again. Written by userspace.
    pub learnt_misses: u64,
    /// Forks of the host when rows of ghosts were looked for last. Written by userspace.
    pub compacted_at: u64,
}

/// [`Host::learning`]: whoever dies is learnt.
pub const LEARNING: u64 = 1;
/// [`Host::learning`]: nobody begins to learn. Those who have begun can still ask for any record.
pub const LEARNING_ENDS: u64 = 2;

/// The task and the findings of a pass, in shared memory. One pass runs at a time: who runs it
/// holds the lock of the tracker.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Pass {
    /// [`PASS_LEARN`] or [`PASS_LABEL`].
    pub kind: u32,
    /// Slot to label.
    pub slot: u32,
    /// Generation of that slot.
    pub generation: u32,
    /// Layer of that slot.
    pub layer: u32,
    /// Root of the tree to label.
    pub root: ProcessId,
    /// Processes visited.
    pub seen: u64,
    /// Records or memberships inserted, or creators held.
    pub inserted: u64,
    /// Living processes without a record.
    pub unrecorded: u64,
    /// Processes whose lineage changed while it was climbed: look again.
    pub unsettled: u64,
    /// Processes of this tree that another tree of the same layer has already.
    pub conflicts: u64,
    /// Insertions that failed because a map was full.
    pub failed: u64,
}

/// Learn every process that is older than tracking.
pub const PASS_LEARN: u32 = 1;
/// Make every living descendant of the root a member.
pub const PASS_LABEL: u32 = 2;

/// The sender of the last signal that can end a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalFact {
    /// The sender, unless the kernel itself sent it.
    pub sender: ProcessId,
    /// The sender's `comm`.
    pub sender_name: [u8; 16],
    /// Signal number.
    pub signal: u32,
    /// [`SENDER_KNOWN`] or [`SENT_BY_KERNEL`].
    pub flags: u32,
}

/// [`Event::kind`]: a member created a process.
pub const EVENT_FORK: u32 = 1;
/// [`Event::kind`]: a member called exec.
pub const EVENT_EXEC: u32 = 2;
/// [`Event::kind`]: a signal that can end it was delivered to a member.
pub const EVENT_SIGNAL: u32 = 3;
/// [`Event::kind`]: a member is dying: no thread of it can return to user code.
pub const EVENT_EXIT: u32 = 4;
/// [`Event::kind`]: a member has another name now.
pub const EVENT_RENAME: u32 = 5;

/// What [`Traits::traits`] says: whoever is orphaned below it becomes its child.
pub const SUBREAPER: u32 = 1;

/// What one process is at the moment and no file says: what the pass over all processes prints.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// The process.
    pub process: ProcessId,
    /// [`SUBREAPER`].
    pub traits: u32,
    zero: u32,
}

impl Traits {
    /// Returns these traits of a process.
    #[must_use]
    #[inline(always)]
    pub const fn new(process: ProcessId, traits: u32) -> Self {
        Self {
            process,
            traits,
            zero: 0,
        }
    }
}

/// One notification in a watcher's ring. The ring is notification; the maps are truth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The time, in ns since boot.
    pub time_ns: u64,
    /// The member it is about.
    pub process: ProcessId,
    /// Its creator; [`ProcessId::NONE`] when unknown.
    pub creator: ProcessId,
    /// Exit and signal: who sent the signal; see [`SENDER_KNOWN`].
    pub sender: ProcessId,
    /// `comm` of the sender.
    pub sender_name: [u8; 16],
    /// `comm` of the member.
    pub name: [u8; 16],
    /// Its cgroup v2.
    pub cgroup_id: u64,
    /// [`EVENT_FORK`] and so on.
    pub kind: u32,
    /// Exit: status as `wait(2)` gives it. Signal: the number.
    pub status: u32,
    /// [`OOM_KILLED`] and so on.
    pub flags: u32,
    /// Real user id.
    pub uid: u32,
    /// Its pid in its own pid namespace.
    pub ns_pid: u32,
    /// Slot of the tree that this is reported to.
    pub slot: u32,
}

/// One death in the flight recorder. It is whole where both numbers are the same and not 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEntry {
    /// Number of the entry, from 1 on, in the order of the deaths; 0 while it is written, so it is
    /// written last.
    pub begun: u64,
    /// The time of the death, in ns since boot.
    pub time_ns: u64,
    /// The dead process.
    pub process: ProcessId,
    /// Its creator; [`ProcessId::NONE`] when unknown.
    pub creator: ProcessId,
    /// The sender of the signal that ended it; see [`SENDER_KNOWN`].
    pub sender: ProcessId,
    /// `comm` of that sender when it sent.
    pub sender_name: [u8; 16],
    /// `comm` at death.
    pub name: [u8; 16],
    /// Status as `wait(2)` gives it.
    pub status: u32,
    /// [`OOM_KILLED`] and so on.
    pub flags: u32,
    /// Real user id.
    pub uid: u32,
    /// Its pid in its own pid namespace.
    pub ns_pid: u32,
    /// Processes that it had created and that were alive, or had somebody alive below them.
    pub children: u64,
    /// The same number as `begun`, written after all else but that.
    pub ended: u64,
}

/// The share of one user in the flight recorder.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogShare {
    /// Entries written. Atomic.
    pub position: u64,
    /// Its shards, one a byte, the first in the lowest. Atomic.
    pub shards: u64,
    /// The number of its shards. Atomic.
    pub count: u64,
    /// 1 once it gets no more of them. Atomic.
    pub is_closed: u64,
}

/// The state of the flight recorder, in shared memory.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Recorder {
    /// Deaths recorded.
    pub recorded: u64,
    /// Entries that a later one has taken the place of.
    pub overwritten: u64,
    /// Users that have asked for a shard of their own, root not counted.
    pub users: u64,
    /// Further shards that were asked for.
    pub growths: u64,
    /// Entries in the shard that later users share.
    pub shared: u64,
}

const _: () = {
    assert!(size_of::<LogEntry>() == 128);
    assert!(size_of::<LogShare>() == 32);
    assert!(size_of::<Recorder>() == 64);
    assert!(size_of::<ProcessId>() == 16);
    assert!(size_of::<Record>() == 168);
    assert!(size_of::<MemberKey>() == 24);
    assert!(size_of::<Membership>() == 8);
    assert!(size_of::<Tree>() == 128);
    assert!(size_of::<Host>() == 128);
    assert!(size_of::<Pass>() == 128);
    assert!(size_of::<SignalFact>() == 40);
    assert!(size_of::<Event>() == 120);
    assert!(size_of::<Traits>() == 24);
};

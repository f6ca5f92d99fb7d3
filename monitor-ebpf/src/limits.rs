//! Every limit of the kernel half, by name. What happens beyond a limit is counted, never ignored:
//! each one says where.

/// Records in the lineage map by default (`--max-processes`). One more process than fits is
/// counted in [`crate::Tree::lost_records`].
pub const LINEAGE_RECORDS: u32 = 65_536;

/// Memberships of watched trees by default, for each record one in two trees. One more is counted
/// in [`crate::Tree::lost_members`].
pub const MEMBERSHIPS: u32 = 2 * LINEAGE_RECORDS;

/// Slots of watched trees; slot 0 is the host, and is never given to a watcher.
pub const TREE_SLOTS: u32 = 64;

/// Slots that only kills take, so that no number of watchers can be in their way.
pub const KILL_SLOTS: u32 = 8;

/// Trees that may contain one process at the same time: one layer each. The last one is for kills.
pub const LAYERS: u32 = 8;

/// Remembered senders of fatal signals. The oldest goes when it is full: only an explanation
/// is lost with it.
pub const SIGNAL_FACTS: u32 = 4_096;

/// Remembered victims of the out-of-memory killer; the oldest goes when it is full.
pub const OOM_FACTS: u32 = 256;

/// Bytes of a watcher's ring buffer by default (`--ring-size`). An event that does not fit is
/// counted in [`crate::Tree::lost_events`].
pub const RING_BYTES: u32 = 1 << 20;

/// Dead creators in a row that a process keeps with nobody else depending on them. More are
/// spliced out by the death that makes the row longer, and counted in [`crate::Record::elided`]: so
/// the ghosts that processes keep are bounded by their number, however they fork and die.
pub const GHOSTS_IN_A_ROW: u32 = 8;

/// Ghosts that one death may splice out. It makes a row longer by the ghost that it leaves, or
/// makes one of two rows and of the ghost between them, where that has just lost its other child:
/// as many as this are too many then. What could not be spliced, because somebody else was about
/// to, is found by the next death in the row, or by the next command.
pub const SPLICES: u32 = GHOSTS_IN_A_ROW + 1;

/// Records that one death may remove, itself and the ghosts that nobody needs any more: as many as
/// stand in a row, itself, and one more. What is left over has no references and is found by the
/// sweep of the next command. The verifier walks through every step, at every start of a tracker.
pub const RELEASE_STEPS: u32 = GHOSTS_IN_A_ROW + 2;

/// Records that the label pass climbs through for one task, ghosts included. Inside the tree it
/// ends at the first that is a member already, and creators come first as a rule. Who has more
/// above it is left to userspace, which reads the records and labels at any depth.
pub const CLIMB_STEPS: u32 = 32;

/// Dying parents in a row that learning passes over: those that were on their way out before the
/// first hook was attached and have not handed over their children yet, of one line. Where there
/// are more, the next pass looks again; a line that stays open is reported as unsettled.
pub const DYING_PARENTS: u32 = 16;

/// A fork or exec event wakes the watcher only when its ring is fuller than one part in this, and
/// the last such part takes deaths alone: what a member does over and over costs no death.
pub const RING_PARTS: u64 = 4;

/// Deaths that the flight recorder keeps. One more takes the place of an older one of the same
/// user, and is counted in [`crate::Recorder::overwritten`].
pub const LOG_ENTRIES: u32 = 8_192;

/// Entries of one shard of the flight recorder: a user has whole shards.
pub const LOG_SHARD: u32 = 512;

/// Shards that a user may get beside the first one, as long as there are any.
pub const LOG_GROWTHS: u32 = 7;

/// Shards that users grow into. The others are first shards: one for root, one for each of the next
/// users, and the last one for all who come later.
pub const LOG_SHARDS_TO_GROW: u32 = 8;

/// Users who have a share in the flight recorder; those who come later have the last shard
/// together.
pub const LOG_USERS: u32 = 1_024;

/// Descriptors of a dying process among which the device file of a GPU is looked for: programs open
/// it early, and what is opened first has the lowest number.
pub const LOG_DESCRIPTORS: u32 = 64;

/// Tries of a call on a map that the kernel refuses for a reason that passes: its bucket is locked.
/// One that fails for good is counted in [`crate::Host::failed_deletes`], or as if the map were
/// full.
pub const MAP_TRIES: u32 = 4;

//! Every limit of the kernel half, by name. What happens beyond a limit is counted, never ignored:
//! each one says where.

/// Records in the lineage map by default (`--max-processes`). One more process than fits is
/// counted in [`crate::Tree::lost_records`].
pub const LINEAGE_RECORDS: u32 = 65_536;

/// Memberships of watched trees by default. One more is counted in [`crate::Tree::lost_members`].
pub const MEMBERSHIPS: u32 = 65_536;

/// Slots of watched trees; slot 0 is the host, and is never given to a watcher.
pub const TREE_SLOTS: u32 = 64;

/// Trees that may contain one process at the same time: one layer each.
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
/// spliced out when it dies, and counted in [`crate::Record::elided`]: so a chain of
/// fork-and-exit generations keeps a bounded number of ghosts.
pub const GHOSTS_IN_A_ROW: u32 = 8;

/// Ghosts that one death may splice out. A chain that grows by one ghost for each death stays
/// short. A line of processes that dies from its end upwards adds more ghosts than the one death
/// that can see them takes away: who does that over and over below one descendant can make ghosts
/// outgrow the living, up to the size of the map, and what does not fit then is counted as lost.
/// More steps would cost every start of a tracker: the verifier walks through each of them.
pub const SPLICES: u32 = 4;

/// Records that one death may remove, itself and the ghosts that nobody needs any more: twice as
/// many as stand in a row as a rule. What is left over has no references and is found by the sweep
/// of the next command. The verifier walks through every step, at every start of a tracker.
pub const RELEASE_STEPS: u32 = 16;

/// Records that the label pass climbs through for one task, ghosts included. Inside the tree it
/// ends at the first that is a member already, and creators come first as a rule; where they do
/// not, a deeper tree takes more passes. Outside it ends at the first process of all: who has more
/// above it is reported as unsettled.
pub const CLIMB_STEPS: u32 = 32;

/// Dying parents in a row that learning passes over: those that were on their way out before the
/// first hook was attached and have not handed over their children yet, of one line. Where there
/// are more, the next pass looks again; a line that stays open is reported as unsettled.
pub const DYING_PARENTS: u32 = 16;

/// A fork or exec event wakes the watcher only when its ring is fuller than one part in this.
pub const WAKE_AT_RING_FRACTION: u64 = 4;

//! Labels the members of a tree, exactly as an atomic snapshot would have them (I5).
//!
//! Two readers take turns until neither finds anybody. The pass of the kernel half looks at every
//! task and labels it in the same moment: so it catches lines in which everybody forks and dies at
//! once, which no reading from userspace is fast enough for. It climbs a bounded number of steps.
//! The reading of all records has no such bound, and does not depend on the order in which the
//! kernel lists tasks: what descends from the root and is no member is labelled by its key.
//!
//! It is over when a pass has inserted nobody, and a reading that began after it shows nobody
//! either, and no line can have slipped through between the two. That is so if
//! - two passes in a row have met nothing that was unsettled, and pids were given out upwards from
//!   the first to the last: the kernel lists tasks by their pids, so whatever was created was still
//!   ahead of the pass. (Two, because a pid is given out a moment before its process is listed.)
//! - or nobody on the host has forked while the records were read;
//! - or every record above the members that was read is held by as many records as it counts, so
//!   none of them was missed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lifemon_ebpf::{HELD, LIVE, Membership, PASS_LABEL, Pass, ProcessId};

use super::Error;
use super::scene::{Pids, Scene};
use super::slots::Added;
use super::snapshot::Snapshot;
use crate::forest::{Forest, walk};

/// Rounds that find somebody to label. A tree that forks all the time settles in a few, because
/// what a member forks is labelled by its fork hook.
const ROUNDS: u32 = 64;

/// How long rounds may find nobody and still not be sure: a process is in the list of all tasks a
/// moment before its fork hook runs, and its creator can lose the processor in between, on a busy
/// machine for many milliseconds.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The pause after the first such round, and the longest; each is twice the one before.
const SETTLE_PAUSES: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(20)];

/// Counts of what makes a tree's answers incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unlabelled {
    /// Living processes without a record: whether they belong cannot be known.
    pub unrecorded: u64,
    /// Processes that may belong, but whose lineage was lost or did not settle.
    pub unsettled: u64,
    /// Members for which the membership map had no room.
    pub failed: u64,
}

impl Unlabelled {
    /// Returns whether every member is labelled.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unrecorded == 0 && self.unsettled == 0 && self.failed == 0
    }
}

/// What is labelled.
pub(super) struct Tree<'a> {
    pub(super) membership: Membership,
    pub(super) layer: u32,
    /// The root for which the slot is named, and others.
    pub(super) roots: &'a [ProcessId],
    /// Those who are no members, nor what they create.
    pub(super) spared: &'a HashSet<ProcessId>,
}

/// The end of labelling.
pub(super) enum Labelled {
    /// Whoever could be labelled is, as the last reading shows.
    Done(Unlabelled, Snapshot),
    /// Another tree of the layer has one of them.
    Overlaps,
}

/// What is concluded from the findings of a pass.
struct Passed {
    inserted: bool,
    is_clear: bool,
}

/// A time, and how far the giving out of pids is then.
#[derive(Clone, Copy)]
struct Moment {
    at: Duration,
    pids: Option<Pids>,
}

impl Moment {
    /// Returns the time before something begins.
    fn before(scene: &impl Scene) -> Self {
        let at = scene.now();
        let pids = scene.pids();
        Self { at, pids }
    }

    /// Returns the time after something has ended.
    fn after(scene: &impl Scene) -> Self {
        let pids = scene.pids();
        let at = scene.now();
        Self { at, pids }
    }

    /// Returns whether pids were given out upwards from then until `later`, and did not begin again.
    fn is_in_one_turn_with(&self, later: &Self) -> bool {
        let took = later.at.saturating_sub(self.at);
        let pids = self.pids.zip(later.pids);
        pids.is_some_and(|(first, last)| {
            first.last <= last.last && took < first.turn.min(last.turn)
        })
    }
}

/// Labels the living members of a tree.
///
/// # Errors
/// When a map cannot be read or written, or a pass cannot run.
pub(super) fn label<S: Scene>(scene: &mut S, tree: &Tree<'_>) -> Result<Labelled, Error> {
    // The pass knows one root; it climbs to any member.
    for other in tree.roots.iter().skip(1) {
        if scene.has_live_record(other)? && add(scene, tree, other)? == Added::Overlaps {
            return Ok(Labelled::Overlaps);
        }
    }
    let (mut round, mut idle_since, mut pause) = (0, None, SETTLE_PAUSES[0]);
    let (mut failed, mut clear_since) = (0, None);
    loop {
        round += 1;
        let begun = Moment::before(scene);
        let Some(passed) = pass(scene, tree)? else {
            return Ok(Labelled::Overlaps);
        };
        let ended = Moment::after(scene);
        let is_proof = passed.is_clear
            && clear_since.is_some_and(|since: Moment| since.is_in_one_turn_with(&ended));
        clear_since = match (passed.is_clear, is_proof) {
            (true, true) => clear_since,
            (true, false) => Some(begun),
            (false, _) => None,
        };
        if passed.inserted && round < ROUNDS {
            continue;
        }
        let reading = read_tree(scene, tree)?;
        let missing = reading.missing();
        let is_last = round >= ROUNDS || failed > 0;
        if !missing.is_empty() && !is_last {
            for id in &missing {
                match add(scene, tree, id)? {
                    Added::Yes => {}
                    Added::Overlaps => return Ok(Labelled::Overlaps),
                    Added::Full => failed += 1,
                }
            }
            idle_since = None;
            continue;
        }
        let since = *idle_since.get_or_insert_with(|| scene.now());
        let is_sure = is_proof || reading.is_closed();
        if is_sure || is_last || scene.now().saturating_sub(since) >= SETTLE_TIME {
            let left = match (failed, is_sure) {
                (0, false) => 1 + missing.len() as u64,
                _ => 0,
            };
            let unlabelled = Unlabelled {
                unrecorded: reading.snapshot.lost_records,
                unsettled: reading.open + left,
                failed,
            };
            return Ok(Labelled::Done(unlabelled, reading.snapshot));
        }
        scene.pause(pause);
        pause = (pause * 2).min(SETTLE_PAUSES[1]);
    }
}

/// Makes one process a member, if it still lives.
fn add<S: Scene>(scene: &S, tree: &Tree<'_>, id: &ProcessId) -> Result<Added, Error> {
    let is_live = || scene.has_live_record(id);
    scene.slots().add(id, tree.layer, tree.membership, is_live)
}

/// Runs the pass of the kernel half; `None` when another tree of the layer has one of the
/// members. Where somebody is spared it does not run: it would label that one again.
fn pass<S: Scene>(scene: &mut S, tree: &Tree<'_>) -> Result<Option<Passed>, Error> {
    if !tree.spared.is_empty() {
        return Ok(Some(Passed {
            inserted: false,
            is_clear: false,
        }));
    }
    let found = scene.run_label_pass(&Pass {
        kind: PASS_LABEL,
        slot: tree.membership.slot,
        generation: tree.membership.generation,
        layer: tree.layer,
        root: tree.roots[0],
        ..Pass::default()
    })?;
    Ok((found.conflicts == 0).then_some(Passed {
        inserted: found.inserted > 0,
        is_clear: found.unsettled == 0 && found.unrecorded == 0,
    }))
}

/// Reads the members, all records, and the members once more.
fn read_tree<S: Scene>(scene: &S, tree: &Tree<'_>) -> Result<Reading, Error> {
    let slots = scene.slots();
    let begun_ns = u64::try_from(scene.now().as_nanos()).unwrap_or(u64::MAX);
    let forks = slots.counters(0).forks;
    let before = slots.members_of(tree.membership)?;
    let snapshot = scene.snapshot()?;
    let after = slots.members_of(tree.membership)?;
    let is_quiet = slots.counters(0).forks == forks;
    let members: HashSet<_> = before.union(&after).copied().collect();
    let Below {
        forest,
        inside,
        living,
        open,
    } = below(&snapshot, tree.roots, &members, tree.spared);
    Ok(Reading {
        begun_ns,
        is_quiet,
        members,
        snapshot,
        forest,
        inside,
        living,
        open,
    })
}

/// The records at one time, and the members.
struct Reading {
    begun_ns: u64,
    /// True if nobody on the host has forked meanwhile.
    is_quiet: bool,
    members: HashSet<ProcessId>,
    snapshot: Snapshot,
    forest: Forest,
    inside: HashSet<ProcessId>,
    living: Vec<ProcessId>,
    open: u64,
}

impl Reading {
    /// Returns those of the tree that are no members. Whoever was created while the records were
    /// read by one who was a member at that time has been labelled by the fork hook, also if it has
    /// died since.
    fn missing(&self) -> Vec<ProcessId> {
        let mut known = HashMap::new();
        let missing = self.living.iter();
        let missing = missing.filter(|id| !self.is_labelled(**id, &mut known));
        missing.copied().collect()
    }

    fn is_labelled(&self, id: ProcessId, known: &mut HashMap<ProcessId, bool>) -> bool {
        let mut line = Vec::new();
        let mut at = id;
        let answer = loop {
            if self.members.contains(&at) {
                break true;
            }
            if let Some(known) = known.get(&at) {
                break *known;
            }
            let record = self.forest.record(&at);
            let creator = record
                .filter(|record| record.elided == 0)
                .map(|record| record.creator);
            match creator {
                Some(creator) if at.start_ns >= self.begun_ns && !line.contains(&at) => {
                    line.push(at);
                    at = creator;
                }
                _ => break false,
            }
        };
        known.extend(line.into_iter().map(|id| (id, answer)));
        answer
    }

    /// Returns whether no living descendant can be missing from the reading: nobody has forked, or
    /// whatever counts references has as many records below it that were read. What was labelled
    /// needs no such proof: its fork hook labels what it creates.
    fn is_closed(&self) -> bool {
        if self.is_quiet {
            return true;
        }
        let mut known = HashMap::new();
        let inside = self.inside.iter();
        let mut unlabelled = inside.filter(|id| !self.is_labelled(**id, &mut known));
        unlabelled.all(|id| {
            let Some(record) = self.forest.record(id) else {
                return true;
            };
            let holds = |child: &&ProcessId| {
                let child = self.forest.record(child);
                child.is_some_and(|child| child.holds_creator == HELD)
            };
            let holders = self.forest.children(id).iter().filter(holds).count() as u64;
            record.references <= holders + u64::from(record.state == LIVE)
        })
    }
}

/// What a reading shows of a tree.
pub(super) struct Below {
    forest: Forest,
    /// Everybody of the tree, ghosts included.
    inside: HashSet<ProcessId>,
    pub(super) living: Vec<ProcessId>,
    /// Living processes that may belong to it: what they descend from was lost.
    open: u64,
}

/// Returns what descends from `roots` or from a member, without passing through who is spared.
pub(super) fn below(
    snapshot: &Snapshot,
    roots: &[ProcessId],
    members: &HashSet<ProcessId>,
    spared: &HashSet<ProcessId>,
) -> Below {
    let forest = Forest::new(snapshot.records.iter().copied());
    let mut tops: Vec<_> = roots.iter().chain(members).copied().collect();
    tops.sort_unstable();
    tops.dedup();
    let tree = walk(&tops, |id| {
        if spared.contains(id) {
            &[]
        } else {
            forest.children(id)
        }
    });
    let inside: HashSet<_> = tree.into_iter().map(|(id, _)| id).collect();
    let living = inside.iter().filter(|id| forest.is_live(id));
    let mut living: Vec<_> = living.filter(|id| !spared.contains(id)).copied().collect();
    living.sort_unstable();
    // Whoever descends from a root has started after it.
    let oldest = roots.iter().map(|root| root.start_ns).min().unwrap_or(0);
    let lost = snapshot.lost_tops().filter(|id| id.start_ns >= oldest);
    let lost = lost.filter(|id| !inside.contains(id));
    let open = lost.map(|id| forest.living(id).len() as u64).sum();
    Below {
        forest,
        inside,
        living,
        open,
    }
}

//! What a guard does when it fires: it ends its trees.
//!
//! A guard can be older than the lineage: an agent of another version, or whoever switches the
//! tracker off and on, begins a new one, which has no ghosts of the old one and knows the living by
//! their parents. Identities are the same in both. A parent is the creator, or an ancestor that has
//! adopted; the init of a pid namespace adopts strangers too, and they end with it anyway. So a root
//! that lives ends with what stands below it now, and nobody else does. Of a root that is dead
//! without a ghost nobody can say what it has left: nothing is ended, and that is reported.

use std::sync::Arc;
use std::time::Duration;

use lifemon_ebpf::LIVE;
use serde_json::{Value, json};

use super::entry::{Guard, text};
use crate::agent::core::{Core, kills, permits};
use crate::agent::deputy::Deputy;
use crate::kernel::snapshot::Snapshot;
use crate::kill::KillOptions;
use crate::kill::envoy::Envoy;
use crate::process::Signal;
use crate::{ProcessId, proc};

/// Tries to end the trees after the first one has failed.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// Ends the trees of a guard; returns what came of it, and why not everything could be done.
pub(super) fn end(core: &Arc<Core>, guard: &Guard) -> (Vec<Value>, Option<String>) {
    let (mut left, mut done) = (guard.trees.clone(), Vec::new());
    let mut failure = None;
    // Tried for as long as that may help: slots and memory come again.
    for attempt in 0..=TRIES {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        failure = end_once(core, guard, &mut left, &mut done).err();
        if left.is_empty() {
            return (done, None);
        }
    }
    (done, failure)
}

/// Tries once to end the trees that are left, of which those that have ended go to `done`.
fn end_once(
    core: &Arc<Core>,
    guard: &Guard,
    left: &mut Vec<ProcessId>,
    done: &mut Vec<Value>,
) -> Result<(), String> {
    let envoy: Option<Arc<dyn Envoy>> = if guard.ends.is_all() {
        None
    } else {
        let deputy = Deputy::start(guard.ends.clone(), guard.uid, guard.gid);
        Some(Arc::new(deputy.map_err(|error| error.to_string())?))
    };
    let grace = guard.grace_ms.map(Duration::from_millis);
    let options = KillOptions {
        first_signal: grace.map(|_| Signal::TERM),
        grace: grace.unwrap_or_default(),
        protected: permits::protected(core),
        envoy,
        ..KillOptions::default()
    };
    let snapshot = core.snapshot().map_err(|problem| problem.detail)?;
    let is_older = guard.tracked_since_ns != snapshot.since_ns;
    left.retain(|root| {
        let is_known = state(&snapshot, *root).is_some() || !proc::is_gone(*root);
        if !is_known {
            done.push(nothing_known(*root, is_older || snapshot.lost_records > 0));
        }
        is_known
    });
    let mut result = Ok(());
    for group in groups(&snapshot, left) {
        match kills::execute_all(group[0], &group[1..], &options) {
            Ok(report) => {
                done.push(
                    json!({"tree": text(group[0]), "killed": report.outcome.killed.len(),
                    "survivors": report.outcome.survivors.len(), "others": report.others,
                    "extinct": report.extinct, "older_than_lineage": is_older}),
                );
                left.retain(|root| !group.contains(root));
            }
            Err(error) => result = Err(error.to_string()),
        }
    }
    result
}

/// Returns what is reported of a tree whose root is dead and has no record: it is extinct, but where
/// the lineage cannot say that.
fn nothing_known(root: ProcessId, is_lost: bool) -> Value {
    if is_lost {
        log::warn!(
            "guard: what {} has left is not known: it died before the lineage began again, or was \
             lost; nothing of its tree was ended",
            text(root)
        );
        return json!({"tree": text(root), "error": "lineage_lost"});
    }
    json!({"tree": text(root), "extinct": true})
}

/// Returns the roots as they are ended at once: of the roots of one kill only the first may be dead.
fn groups(snapshot: &Snapshot, roots: &[ProcessId]) -> Vec<Vec<ProcessId>> {
    let is_dead = |root: &ProcessId| state(snapshot, *root) == Some(false);
    let (dead, living): (Vec<_>, Vec<_>) = roots.iter().partition(|root| is_dead(root));
    let mut groups: Vec<Vec<ProcessId>> = dead.into_iter().map(|root| vec![root]).collect();
    match groups.first_mut() {
        Some(first) => first.extend(living),
        None if !living.is_empty() => groups.push(living),
        None => {}
    }
    groups
}

/// Returns whether a process lives; `None` where nothing is known of it.
pub(super) fn state(snapshot: &Snapshot, id: ProcessId) -> Option<bool> {
    let record = snapshot.records.iter().find(|(known, _)| *known == id);
    record.map(|(_, record)| record.state == LIVE)
}

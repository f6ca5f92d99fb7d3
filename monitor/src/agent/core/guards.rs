//! Guards: when an owner dies, or the connection that made the guard is closed by the caller, the
//! trees end. They are kept on disk: a new agent takes them over, and one whose owner has died
//! meanwhile fires once the lineage says so. The agent's own end is no disconnect.

mod ending;
mod entry;
mod owner;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::kernel::{Tracker, WatchOptions, Watcher};
use crate::{ProcessId, proc};

use super::permits;
use super::{Connection, Core, lock};
use crate::agent::call::{Answer, GuardRequest};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::state::{Store, boot};
use crate::agent::time::parse_duration;
use crate::agent::token;
use crate::agent::view::View;
use ending::end;
use entry::{Cause, Entry, Guard, State, text};
pub(super) use owner::attend;
use owner::open_owner;

/// Trees of one guard at most.
const TREES_MAX: usize = 4;
/// The longest wait between SIGTERM and the kill.
const GRACE_MAX: Duration = Duration::from_mins(5);
/// Bytes of the ring that the watch of a guard must have: nobody reads it.
const RING_BYTES: u32 = 4_096;

/// All guards.
pub(super) struct Guards {
    store: Store,
    /// The boot that guards are made in, and that those of before must be of.
    boot: String,
    entries: Mutex<HashMap<String, Entry>>,
    /// Held by whoever looks after the owners that are not waited for.
    attending: Mutex<()>,
}

impl Guards {
    /// Opens what is kept.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        Ok(Self {
            store: Store::open(state, "guards")?,
            // Read once: an agent without descriptors takes no guard for one of another boot.
            boot: boot()?,
            entries: Mutex::default(),
            attending: Mutex::default(),
        })
    }

    /// Takes over the guards of the agent before.
    pub(super) fn adopt(core: &Arc<Core>) {
        let since_ns = core.snapshot().map_or(0, |snapshot| snapshot.since_ns);
        for guard in core.guards().store.read_all::<Guard>() {
            if guard.boot != core.guards().boot {
                core.guards().store.remove(&guard.id);
                continue;
            }
            let taken = guard.trees.iter();
            let budget = guard.budget.as_ref().unwrap_or(&guard.account);
            let taken = taken.filter_map(|_| core.limits().take_tree(budget).ok());
            let taken = taken.collect();
            let is_older = guard.tracked_since_ns != since_ns;
            let fields = json!({"id": guard.id, "older_than_lineage": is_older});
            core.audit().write("guard_adopted", None, fields);
            let (id, owner) = (guard.id.clone(), guard.owner);
            let watcher = watch(&guard.trees).ok().flatten();
            let entry = Entry::new(guard, watcher, taken);
            let fires = entry.guard.fires;
            lock(&core.guards().entries).insert(id.clone(), entry);
            let attended = match fires {
                Some(cause) => {
                    Self::fire(core, &id, cause);
                    Ok(())
                }
                None => owner::attend_one(core, &id, owner),
            };
            if let Err(problem) = attended {
                log::warn!("guard {id}: {}; its owner is tried again", problem.detail);
            }
        }
    }

    /// Makes a guard for a caller, on its connection.
    pub(super) async fn make(
        core: &Arc<Core>,
        connection: &Arc<Connection>,
        request: GuardRequest,
    ) -> Result<Answer, Problem> {
        let peer = Arc::clone(&connection.peer);
        let grace = read_grace(&request)?;
        let budget = peer.budget();
        let mut taken = Vec::new();
        for _ in &request.trees {
            taken.push(core.limits().take_tree(&budget)?);
        }
        let caller = Arc::clone(&peer);
        let (id, pidfd, answer) = core
            .at_work(&peer, move |core| {
                let snapshot = core.snapshot()?;
                let view = View::new(&snapshot, &caller);
                let find = |name| view.find(name, core.handles());
                let owner = find(&request.owner)?;
                let pidfd = open_owner(core, owner)?.ok_or_else(|| {
                    Problem::new(Code::NoSuchProcess, "the owner is dead already")
                })?;
                let envoy = permits::envoy(&caller)?;
                let trees = request.trees.iter().map(|name| {
                    let root = find(name)?;
                    permits::check(&view, root, envoy.as_deref())?;
                    Ok(root)
                });
                let trees = trees.collect::<Result<Vec<_>, Problem>>()?;
                let watcher = watch(&trees)?;
                let guard = Guard {
                    id: token::new(),
                    boot: core.guards().boot.clone(),
                    account: caller.account(),
                    budget: Some(budget),
                    uid: caller.uid,
                    gid: caller.gid,
                    ends: caller.scope(caller.rights.ends),
                    owner,
                    trees,
                    grace_ms: grace.map(|grace| grace.as_millis().try_into().unwrap_or(u64::MAX)),
                    on_disconnect: request.on_disconnect,
                    tracked_since_ns: snapshot.since_ns,
                    fires: None,
                };
                let id = guard.id.clone();
                core.guards().store.write(&id, &guard).map_err(|error| {
                    let detail = format!("the guard cannot be kept: {error}; nothing is guarded");
                    Problem::new(Code::Unavailable, detail)
                })?;
                let fields = json!({"id": id, "owner": text(owner),
                    "trees": guard.trees.iter().map(|id| text(*id)).collect::<Vec<_>>()});
                core.audit().write("guard", Some(&caller), fields);
                let entry = Entry::new(guard, watcher, taken);
                let answer = entry.json();
                lock(&core.guards().entries).insert(id.clone(), entry);
                Ok((id, pidfd, answer))
            })
            .await?;
        owner::wait_for(core, &id, pidfd);
        Self::hang_on(core, connection, &id);
        let mut answer = answer;
        answer["connected"] = true.into();
        Ok(Answer::object(201, &answer))
    }

    /// Lets a guard hang on a connection.
    fn hang_on(core: &Arc<Core>, connection: &Arc<Connection>, id: &str) {
        if let Some(entry) = lock(&core.guards().entries).get_mut(id) {
            entry.connection = Some(connection.number);
        }
        // It may have ended before it was noted here.
        if !core.is_open(connection.number) {
            Self::disconnected(core, connection.number, true);
        }
    }

    /// Takes a guard up on another connection.
    pub(super) fn take_up(
        core: &Arc<Core>,
        connection: &Arc<Connection>,
        id: &str,
    ) -> Result<Answer, Problem> {
        let answer = {
            let mut guards = lock(&core.guards().entries);
            let entry = own(&mut guards, &connection.peer, id)?;
            entry.connection = Some(connection.number);
            entry.json()
        };
        Self::hang_on(core, connection, id);
        Ok(Answer::object(200, &answer))
    }

    /// Ends a guard; its trees live on.
    pub(super) fn release(core: &Arc<Core>, peer: &Peer, id: &str) -> Result<Answer, Problem> {
        let removed = {
            let mut guards = lock(&core.guards().entries);
            let entry = own(&mut guards, peer, id)?;
            if matches!(entry.state(), State::Firing) {
                let detail = format!("guard {id} has fired");
                return Err(Problem::new(Code::NoSuchGuard, detail));
            }
            core.guards().store.remove(id);
            guards.remove(id)
        };
        core.audit()
            .write("guard_released", Some(peer), json!({"id": id}));
        if let Some(entry) = removed {
            // Giving its slot back waits for a lock.
            tokio::task::spawn_blocking(move || drop(entry));
        }
        Ok(Answer::object(200, &json!({"id": id, "state": "released"})))
    }

    /// Lists the guards of a caller's account.
    pub(super) fn list(&self, peer: &Peer) -> Answer {
        let guards = lock(&self.entries);
        let own = guards.values();
        let own = own.filter(|entry| entry.guard.account == peer.account() || peer.is_operator());
        let own: Vec<_> = own.map(Entry::json).collect();
        Answer::object(200, &json!({"guards": own}))
    }

    /// Fires the guards that hang on a connection which its caller has closed; where the agent has
    /// ended it, they stay, and wait for the owner's death or another connection.
    pub(super) fn disconnected(core: &Arc<Core>, connection: u64, by_caller: bool) {
        let mut fired = Vec::new();
        for (id, entry) in lock(&core.guards().entries).iter_mut() {
            if entry.connection == Some(connection) {
                entry.connection = None;
                if by_caller && entry.guard.on_disconnect {
                    fired.push(id.clone());
                }
            }
        }
        for id in fired {
            Self::fire(core, &id, Cause::Disconnected);
        }
    }

    /// Ends the trees of a guard, on a thread of its own.
    fn fire(core: &Arc<Core>, id: &str, cause: Cause) {
        let guard = {
            let mut guards = lock(&core.guards().entries);
            let Some(entry) = guards.get_mut(id) else {
                return;
            };
            if !entry.enter(State::Firing) {
                return;
            }
            entry.guard.fires = Some(cause);
            entry.connection = None;
            entry.guard.clone()
        };
        // Before the first signal. Where it fails, the next agent decides again, and as before.
        if let Err(error) = core.guards().store.write(id, &guard) {
            log::warn!("guard {id}: that it fires cannot be noted: {error}");
        }
        core.audit()
            .write("guard_fires", None, json!({"id": id, "cause": cause}));
        let (core_, of) = (Arc::clone(core), id.to_owned());
        let run = move || {
            let (done, failure) = end(&core_, &guard);
            let mut fields = json!({"id": of, "trees": done});
            if let Some(failure) = failure {
                // It stays on disk: the next agent tries again, or its caller releases it.
                Self::failed(&core_, &of);
                fields["error"] = failure.into();
                core_.audit().write("guard_failed", None, fields);
                return;
            }
            core_.audit().write("guard_done", None, fields);
            let removed = lock(&core_.guards().entries).remove(&of);
            core_.guards().store.remove(&of);
            drop(removed);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("guard".to_owned())
            .spawn(run)
        {
            log::warn!("guard {id} cannot fire now: {error}");
            Self::failed(core, id);
        }
    }

    /// Notes that not everything could be done.
    fn failed(core: &Core, id: &str) {
        let watcher = {
            let mut guards = lock(&core.guards().entries);
            guards.get_mut(id).and_then(|entry| {
                entry.enter(State::Failed);
                entry.watcher.take()
            })
        };
        drop(watcher);
    }
}

/// Returns the grace that a request asks for, and refuses a request of a wrong shape.
fn read_grace(request: &GuardRequest) -> Result<Option<Duration>, Problem> {
    let wrong = |detail: String| Problem::new(Code::InvalidRequest, detail);
    if request.trees.is_empty() || request.trees.len() > TREES_MAX {
        return Err(wrong(format!("trees: from 1 to {TREES_MAX}")));
    }
    let grace = request.grace.as_deref().map(parse_duration);
    let grace = grace
        .transpose()
        .map_err(|why| wrong(format!("grace: {why}")))?;
    if grace.is_some_and(|grace| grace > GRACE_MAX) {
        return Err(wrong(format!("grace: at most {} s", GRACE_MAX.as_secs())));
    }
    Ok(grace)
}

/// Watches trees as one, so that the ghost of the first root stays; `None` where no slot is left,
/// or the root has gone: the lineage keeps ghosts by itself, but for long rows of them.
fn watch(trees: &[ProcessId]) -> Result<Option<Watcher>, Problem> {
    let Some(tracker) = Tracker::open()? else {
        return Ok(None);
    };
    let is_known = |id: &&ProcessId| tracker.record(id).is_ok_and(|record| record.is_some());
    let Some(root) = trees.iter().find(is_known) else {
        return Ok(None);
    };
    let options = WatchOptions {
        ring_bytes: RING_BYTES,
        ..WatchOptions::default()
    };
    let others = trees.iter().copied();
    let others = others.filter(|id| id != root && proc::is_live(*id));
    let others: Vec<_> = others.collect();
    match tracker.watch(*root, &others, &options) {
        Ok(watcher) => Ok(Some(watcher)),
        Err(crate::Error::NoProcess(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns a guard of the caller's account, or any for the operator.
fn own<'a>(
    guards: &'a mut HashMap<String, Entry>,
    peer: &Peer,
    id: &str,
) -> Result<&'a mut Entry, Problem> {
    let entry = guards.get_mut(id);
    let entry = entry.filter(|entry| entry.guard.account == peer.account() || peer.is_operator());
    entry.ok_or_else(|| Problem::new(Code::NoSuchGuard, format!("no guard {id} of yours")))
}

//! Guards: when an owner dies, or the connection that made the guard is closed by the caller, the
//! trees end. They are kept on disk: a new agent takes them over, and one whose owner has died
//! meanwhile fires once the lineage says so. The agent's own end is no disconnect.

mod ending;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::kernel::{Tracker, WatchOptions, Watcher};
use crate::sys::pidfd;
use crate::{ProcessId, proc};

use super::permits;
use super::{Connection, Core, lock};
use crate::agent::call::{Answer, GuardRequest};
use crate::agent::limits::Taken;
use crate::agent::peer::{Peer, Scope};
use crate::agent::problem::{Code, Problem};
use crate::agent::state::{Store, boot};
use crate::agent::time::parse_duration;
use crate::agent::token;
use crate::agent::view::View;
use ending::{end, state};

/// Trees of one guard at most.
const TREES_MAX: usize = 4;
/// The longest wait between SIGTERM and the kill.
const GRACE_MAX: Duration = Duration::from_mins(5);
/// Bytes of the ring that the watch of a guard must have: nobody reads it.
const RING_BYTES: u32 = 4_096;

/// A guard as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Guard {
    id: String,
    /// The boot that the identities are of.
    boot: String,
    account: String,
    uid: u32,
    gid: u32,
    /// What its caller may end; everything by the agent's own power.
    ends: Scope,
    owner: ProcessId,
    trees: Vec<ProcessId>,
    grace_ms: Option<u64>,
    on_disconnect: bool,
    /// The beginning of the lineage that it was made in; 0 where an agent before did not note it.
    #[serde(default)]
    tracked_since_ns: u64,
    /// The reason why it fires, once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fires: Option<Cause>,
}

/// The reason why a guard fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cause {
    OwnerDied,
    Disconnected,
}

struct Entry {
    guard: Guard,
    /// The connection whose end fires it.
    connection: Option<u64>,
    /// Waits for the owner's end.
    waiting: Option<AbortHandle>,
    /// Keeps the roots' ghosts, so that their trees are found.
    watcher: Option<Watcher>,
    /// It has fired, and not everything could be done: the next agent tries again.
    has_failed: bool,
    /// It has fired, and is not fired again by this agent.
    is_firing: bool,
    _taken: Vec<[Taken; 2]>,
}

/// All guards.
pub(super) struct Guards {
    store: Store,
    guards: Mutex<HashMap<String, Entry>>,
}

impl Guards {
    /// Opens what is kept.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        Ok(Self {
            store: Store::open(state, "guards")?,
            guards: Mutex::default(),
        })
    }

    /// Takes over the guards of the agent before.
    pub(super) fn adopt(core: &Arc<Core>) {
        let since_ns = core.snapshot().map_or(0, |snapshot| snapshot.since_ns);
        for guard in core.guards().store.read_all::<Guard>() {
            if guard.boot != boot() {
                core.guards().store.remove(&guard.id);
                continue;
            }
            let taken = guard.trees.iter();
            let taken = taken.filter_map(|_| core.limits().take_tree(&guard.account).ok());
            let taken = taken.collect();
            let is_older = guard.tracked_since_ns != since_ns;
            let fields = json!({"id": guard.id, "older_than_lineage": is_older});
            core.audit().write("guard_adopted", None, fields);
            let (id, owner) = (guard.id.clone(), guard.owner);
            let watcher = watch(&guard.trees).ok().flatten();
            let entry = Entry {
                connection: None,
                waiting: None,
                watcher,
                has_failed: false,
                is_firing: false,
                _taken: taken,
                guard,
            };
            let fires = entry.guard.fires;
            lock(&core.guards().guards).insert(id.clone(), entry);
            match (fires, open_owner(core, owner)) {
                (Some(cause), _) => Self::fire(core, &id, cause),
                (None, Ok(Some(pidfd))) => Self::wait_for(core, &id, pidfd),
                // Its ghost, or that nothing is left of it, says that it is dead.
                (None, Ok(None)) => Self::fire(core, &id, Cause::OwnerDied),
                (None, Err(problem)) => {
                    log::warn!("guard {id}: {}; it stays", problem.detail);
                }
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
        let account = peer.account();
        let mut taken = Vec::new();
        for _ in &request.trees {
            taken.push(core.limits().take_tree(&account)?);
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
                    boot: boot(),
                    account,
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
                let entry = Entry {
                    guard,
                    connection: None,
                    waiting: None,
                    watcher,
                    has_failed: false,
                    is_firing: false,
                    _taken: taken,
                };
                let answer = entry.json();
                lock(&core.guards().guards).insert(id.clone(), entry);
                Ok((id, pidfd, answer))
            })
            .await?;
        Self::wait_for(core, &id, pidfd);
        Self::hang_on(core, connection, &id);
        let mut answer = answer;
        answer["connected"] = true.into();
        Ok(Answer::object(201, &answer))
    }

    /// Lets a guard hang on a connection.
    fn hang_on(core: &Arc<Core>, connection: &Arc<Connection>, id: &str) {
        if let Some(entry) = lock(&core.guards().guards).get_mut(id) {
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
            let mut guards = lock(&core.guards().guards);
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
            let mut guards = lock(&core.guards().guards);
            let entry = own(&mut guards, peer, id)?;
            if entry.guard.fires.is_some() && !entry.has_failed {
                let detail = format!("guard {id} has fired");
                return Err(Problem::new(Code::NoSuchGuard, detail));
            }
            core.guards().store.remove(id);
            guards.remove(id)
        };
        core.audit()
            .write("guard_released", Some(peer), json!({"id": id}));
        if let Some(mut entry) = removed {
            entry.stop();
            // Giving its slot back waits for a lock.
            tokio::task::spawn_blocking(move || drop(entry));
        }
        Ok(Answer::object(200, &json!({"id": id, "state": "released"})))
    }

    /// Lists the guards of a caller's account.
    pub(super) fn list(&self, peer: &Peer) -> Answer {
        let guards = lock(&self.guards);
        let own = guards.values();
        let own = own.filter(|entry| entry.guard.account == peer.account() || peer.is_operator());
        let own: Vec<_> = own.map(Entry::json).collect();
        Answer::object(200, &json!({"guards": own}))
    }

    /// Fires the guards that hang on a connection which its caller has closed; where the agent has
    /// ended it, they stay, and wait for the owner's death or another connection.
    pub(super) fn disconnected(core: &Arc<Core>, connection: u64, by_caller: bool) {
        let mut fired = Vec::new();
        for (id, entry) in lock(&core.guards().guards).iter_mut() {
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

    /// Waits for the owner's end, in a task of its own.
    fn wait_for(core: &Arc<Core>, id: &str, pidfd: OwnedFd) {
        let (core_, of) = (Arc::clone(core), id.to_owned());
        let waiting = tokio::spawn(async move {
            if pidfd::wait_until_gone(pidfd).await {
                Self::fire(&core_, &of, Cause::OwnerDied);
            } else {
                log::warn!("guard {of}: its owner cannot be waited for");
            }
        });
        if let Some(entry) = lock(&core.guards().guards).get_mut(id) {
            entry.waiting = Some(waiting.abort_handle());
        }
    }

    /// Ends the trees of a guard, on a thread of its own.
    fn fire(core: &Arc<Core>, id: &str, cause: Cause) {
        let guard = {
            let mut guards = lock(&core.guards().guards);
            let Some(entry) = guards.get_mut(id) else {
                return;
            };
            if entry.is_firing {
                return;
            }
            entry.is_firing = true;
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
            let removed = lock(&core_.guards().guards).remove(&of);
            core_.guards().store.remove(&of);
            if let Some(mut entry) = removed {
                entry.stop();
            }
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
        if let Some(entry) = lock(&core.guards().guards).get_mut(id) {
            entry.has_failed = true;
            entry.stop();
        }
    }
}

/// Opens a descriptor of an owner; `None` where it is dead.
fn open_owner(core: &Core, owner: ProcessId) -> Result<Option<OwnedFd>, Problem> {
    // Race: without a record it may be dead, or have been lost to a full map. `/proc` decides then.
    let is_live = |core: &Core| {
        let snapshot = core.snapshot()?;
        let state = state(&snapshot, owner);
        Ok::<_, Problem>(state.unwrap_or_else(|| !proc::is_gone(owner)))
    };
    if !is_live(core)? {
        return Ok(None);
    }
    let pidfd = match pidfd::open(owner.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(Problem::new(Code::Unavailable, error.to_string())),
    };
    // The record is still live: the descriptor is that of the owner.
    Ok(is_live(core)?.then_some(pidfd))
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

fn own<'a>(
    guards: &'a mut HashMap<String, Entry>,
    peer: &Peer,
    id: &str,
) -> Result<&'a mut Entry, Problem> {
    let entry = guards.get_mut(id);
    let entry = entry.filter(|entry| entry.guard.account == peer.account() || peer.is_operator());
    entry.ok_or_else(|| Problem::new(Code::NoSuchGuard, format!("no guard {id} of yours")))
}

impl Entry {
    fn json(&self) -> Value {
        let id = |id: &ProcessId| json!({"pid": id.pid, "start_ns": id.start_ns});
        let guard = &self.guard;
        json!({
            "id": guard.id,
            "owner": id(&guard.owner),
            "trees": guard.trees.iter().map(id).collect::<Vec<_>>(),
            "grace_ms": guard.grace_ms,
            "on_disconnect": guard.on_disconnect,
            "connected": self.connection.is_some(),
            "state": match guard.fires {
                None => "armed",
                Some(_) if self.has_failed => "failed",
                Some(_) => "firing",
            },
        })
    }

    fn stop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.abort();
        }
        drop(self.watcher.take());
    }
}

fn text(id: ProcessId) -> String {
    format!("{}@{}", id.pid, id.start_ns)
}

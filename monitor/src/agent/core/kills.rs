//! Kills that callers have asked for: with the rights of the caller, once for each key, logged, and
//! kept on disk from before the first signal, so that a kill that was interrupted is never
//! repeated.

mod execute;
mod kept;
mod order;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::forest::Forest;
use crate::kill::KillError;
use crate::kill::envoy::Envoy;
use crate::kill::marks::Marks;
use crate::{KillReport, ProcessId, report};

use super::permits::{check, check_is_not_own, envoy, mps_clients};
use super::{Core, lock};
use crate::agent::call::{Answer, Form, KillRequest};
use crate::agent::limits::Good;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::state::Store;
use crate::agent::token;
use crate::agent::view::View;
pub(super) use execute::execute_all;
use execute::{execute, problem_of, problem_value};
use kept::{Entry, Kill, State};
use order::Order;

/// Kills that are remembered; of these the oldest that are done go first.
const REMEMBERED: usize = 512;

/// All kills.
pub(super) struct Kills {
    store: Store,
    kills: Mutex<HashMap<String, Entry>>,
}

impl Kills {
    /// Reads what an agent before has left. What was under way then is interrupted.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let store = Store::open(state, "kills")?;
        let mut kills = HashMap::new();
        for mut kill in store.read_all::<Kill>() {
            if kill.state == State::Running {
                kill.state = State::Interrupted;
                // On a full disk the next agent finds it as this one did.
                if let Err(error) = store.write(&kill.id, &kill) {
                    log::warn!(
                        "that kill {} was interrupted is not noted: {error}",
                        kill.id
                    );
                }
            }
            let changed = watch::Sender::new(kill.state);
            kills.insert(kill.id.clone(), Entry { kill, changed });
        }
        let kills = Mutex::new(kills);
        Ok(Self { store, kills })
    }

    /// Ends a tree for a caller.
    pub(super) async fn kill(
        core: &Arc<Core>,
        peer: &Arc<Peer>,
        request: KillRequest,
        key: Option<String>,
    ) -> Result<Answer, Problem> {
        let fingerprint = fingerprint(&request);
        let account = peer.account();
        if let Some(key) = &key
            && let Some(known) = core.kills().with_key(&account, key, &fingerprint)?
        {
            return core.kills().answer(&known, request.wait).await;
        }
        let order = Order::read(&request)?;
        let taken = core.limits().take(Good::Work, &peer.budget())?;
        let (caller, asked) = (Arc::clone(peer), request.clone());
        let permitted = core.at_work(peer, move |core| permit(core, &caller, &asked));
        let Permitted {
            root,
            lineage,
            envoy,
            marks,
        } = permitted.await?;
        // What was refused is none.
        if !request.dry_run {
            core.limits().count_kill(&peer.budget(), Instant::now())?;
        }
        let kill = Kill {
            id: token::new(),
            order: 0,
            account,
            state: State::Running,
            key: key.map(|key| (key, fingerprint)),
            root,
            result: None,
            text: None,
        };
        let id = kill.id.clone();
        // Written before the first signal: whoever finds it running knows that it may have begun.
        core.kills().begin(kill, request.dry_run)?;
        let lineage: Vec<_> = lineage
            .iter()
            .map(|id| format!("{}@{}", id.pid, id.start_ns))
            .collect();
        let fields = json!({"id": id, "tree": format!("{}@{}", root.pid, root.start_ns),
            "lineage": lineage, "dry_run": request.dry_run, "reason": request.reason});
        core.audit().write("kill", Some(peer), fields);
        let (core_, caller, of) = (Arc::clone(core), Arc::clone(peer), id.clone());
        let options = order.options(core, envoy, request.dry_run);
        let run = move || {
            let _taken = taken;
            let result = execute(root, &options);
            core_
                .kills()
                .finish(&core_, &caller, &of, (result, marks), request.dry_run);
        };
        let started = std::thread::Builder::new()
            .name("kill".to_owned())
            .spawn(run);
        if let Err(error) = started {
            let problem = Problem::new(Code::Unavailable, error.to_string());
            core.kills()
                .set(&id, State::Failed, problem_value(&problem), false);
            return Err(problem);
        }
        core.kills().answer(&id, request.wait).await
    }

    /// Answers what became of a kill.
    pub(super) fn state(&self, peer: &Peer, id: &str, form: Form) -> Result<Answer, Problem> {
        let kills = lock(&self.kills);
        let entry = kills.get(id);
        let entry =
            entry.filter(|entry| entry.kill.account == peer.account() || peer.is_operator());
        let missing = || Problem::new(Code::NoSuchKill, format!("no kill {id} of yours"));
        let kill = &entry.ok_or_else(missing)?.kill;
        match &kill.text {
            Some(text) if form.is_text => Ok(Answer::text(text.clone())),
            _ => Ok(kill.answer()),
        }
    }

    /// Returns the kill that a key was used for.
    fn with_key(
        &self,
        account: &str,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<String>, Problem> {
        let kills = lock(&self.kills);
        let mut known = kills.values().filter(|entry| entry.kill.account == account);
        let known = known.find_map(|entry| {
            let (own, request) = entry.kill.key.as_ref()?;
            (own == key).then(|| (entry.kill.id.clone(), request == fingerprint))
        });
        match known {
            Some((_, false)) => {
                let detail = format!("key {key} was used for another request");
                Err(Problem::new(Code::KeyReused, detail))
            }
            Some((id, true)) => Ok(Some(id)),
            None => Ok(None),
        }
    }

    /// Notes a kill before it begins, and forgets the oldest that are done.
    fn begin(&self, mut kill: Kill, is_dry_run: bool) -> Result<(), Problem> {
        let mut kills = lock(&self.kills);
        while kills.len() >= REMEMBERED {
            let done = kills
                .values()
                .filter(|entry| entry.kill.state != State::Running);
            let oldest = done.min_by_key(|entry| entry.kill.order);
            let Some(oldest) = oldest.map(|entry| entry.kill.id.clone()) else {
                return Err(Problem::new(
                    Code::LimitReached,
                    "too many kills are under way",
                ));
            };
            kills.remove(&oldest);
            self.store.remove(&oldest);
        }
        kill.order = kills
            .values()
            .map(|entry| entry.kill.order)
            .max()
            .unwrap_or(0)
            + 1;
        if !is_dry_run {
            self.store.write(&kill.id, &kill).map_err(|error| {
                let detail = format!("the kill cannot be noted: {error}; nothing was done");
                Problem::new(Code::Unavailable, detail)
            })?;
        }
        let changed = watch::Sender::new(kill.state);
        kills.insert(kill.id.clone(), Entry { kill, changed });
        Ok(())
    }

    /// Notes and logs what a kill has come to.
    fn finish(
        &self,
        core: &Core,
        peer: &Peer,
        id: &str,
        (result, marks): (Result<KillReport, KillError>, Marks),
        is_dry_run: bool,
    ) {
        let (state, value) = match result {
            Ok(mut report) => {
                if !peer.scope(peer.rights.sees).is_all() {
                    let scope = peer.scope(peer.rights.sees);
                    report
                        .suspects
                        .retain(|suspect| scope.has(suspect.process.id));
                }
                let reports = [(report, marks)];
                let json = report::kill::json(&reports, true, is_dry_run).unwrap_or_default();
                let value = serde_json::from_str(&json).unwrap_or(Value::Null);
                let [(report, marks)] = &reports;
                let text = if is_dry_run {
                    report::kill::would(report, marks)
                } else {
                    report::kill::done(report)
                };
                if let Some(entry) = lock(&self.kills).get_mut(id) {
                    entry.kill.text = Some(text);
                }
                let fields = json!({"id": id, "killed": report.outcome.killed.len(),
                    "survivors": report.outcome.survivors.len(), "others": report.others,
                    "extinct": report.extinct, "dry_run": is_dry_run});
                core.audit().write("killed", Some(peer), fields);
                (State::Done, value)
            }
            Err(error) => {
                let problem = problem_of(&error);
                let fields = json!({"id": id, "code": problem.code, "detail": problem.detail});
                core.audit().write("kill_failed", Some(peer), fields);
                (State::Failed, problem_value(&problem))
            }
        };
        self.set(id, state, value, !is_dry_run);
    }

    /// Notes the end of a kill, and wakes who waits for it.
    fn set(&self, id: &str, state: State, result: Value, is_kept: bool) {
        let mut kills = lock(&self.kills);
        let Some(entry) = kills.get_mut(id) else {
            return;
        };
        entry.kill.state = state;
        entry.kill.result = Some(result);
        if is_kept && let Err(error) = self.store.write(id, &entry.kill) {
            log::warn!("the end of kill {id} could not be noted: {error}");
        }
        entry.changed.send_replace(state);
    }

    /// Answers with a kill, once it is over if that is to be waited for.
    async fn answer(&self, id: &str, waits: bool) -> Result<Answer, Problem> {
        let missing = || Problem::new(Code::NoSuchKill, format!("no kill {id}"));
        let changed = {
            let kills = lock(&self.kills);
            kills.get(id).ok_or_else(missing)?.changed.subscribe()
        };
        let mut changed = changed;
        if waits {
            let _ = changed.wait_for(|state| *state != State::Running).await;
        }
        let kills = lock(&self.kills);
        Ok(kills.get(id).ok_or_else(missing)?.kill.answer())
    }
}

/// A kill that its caller may ask for.
struct Permitted {
    root: ProcessId,
    /// The creators of the root, for the log.
    lineage: Vec<ProcessId>,
    /// The sender of the signals; `None` for the agent itself.
    envoy: Option<Arc<dyn Envoy>>,
    /// What a dry run says of the members.
    marks: Marks,
}

/// Finds the root that a request names, and refuses what its caller may not end, or would not want
/// to end had it looked.
fn permit(core: &Core, caller: &Peer, request: &KillRequest) -> Result<Permitted, Problem> {
    let (snapshot, subreapers) = core.snapshot_with_subreapers()?;
    let view = View::new(&snapshot, caller);
    let root = view.find(&request.process, core.handles())?;
    let envoy = envoy(caller)?;
    check(&view, root, envoy.as_deref())?;
    let forest = Forest::new(snapshot.records.iter().copied());
    if !request.force {
        check_is_not_own(caller, root, &snapshot, &forest)?;
    }
    let mut marks = Marks::default();
    if request.dry_run || !request.force {
        let clients = mps_clients(&forest, root, envoy.as_deref());
        if request.dry_run {
            marks = Marks::look(&forest, &subreapers, root, clients, &[]);
        } else {
            clients.check()?;
        }
    }
    Ok(Permitted {
        root,
        lineage: forest.ancestors(&root),
        envoy,
        marks,
    })
}

/// Returns what a request asks for, however its answer is waited for: one key is for one of these.
fn fingerprint(request: &KillRequest) -> String {
    let asked = KillRequest {
        wait: true,
        ..request.clone()
    };
    serde_json::to_string(&asked).unwrap_or_default()
}

//! Kills that callers have asked for: with the rights of the caller, once for each key, logged, and
//! kept on disk from before the first signal, so that a kill that was interrupted is never
//! repeated.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::forest::Forest;
use crate::kernel::{LoadOptions, Tracker};
use crate::kill::envoy::Envoy;
use crate::kill::marks::Marks;
use crate::kill::{KillError, KillOptions, kill_tree, kill_trees};
use crate::process::Signal;
use crate::{KillReport, ProcessId, report};

use super::permits::{check, check_is_not_own, envoy, mps_clients, protected};
use super::{Core, lock};
use crate::agent::call::{Answer, Form, KillRequest};
use crate::agent::limits::Good;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::state::Store;
use crate::agent::time::{parse_duration, parse_signal};
use crate::agent::token;
use crate::agent::view::View;
use crate::sys::runtime::current_thread;

/// Kills that are remembered; of these the oldest that are done go first.
const REMEMBERED: usize = 512;
/// The longest wait after the first signal.
const GRACE_MAX: Duration = Duration::from_mins(5);
/// The longest time to go on killing.
const TIMEOUT_MAX: Duration = Duration::from_mins(2);

/// The state of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Running,
    Done,
    Failed,
    Interrupted,
}

/// A kill as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kill {
    id: String,
    order: u64,
    account: String,
    state: State,
    /// The key of the caller, and the request that it was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<(String, String)>,
    root: ProcessId,
    /// The report, as `lifemon kill -o json` prints it, or a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// The report in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// All kills.
pub(super) struct Kills {
    store: Store,
    kills: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    kill: Kill,
    changed: watch::Sender<State>,
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
        let fingerprint = {
            let asked = KillRequest {
                wait: true,
                ..request.clone()
            };
            serde_json::to_string(&asked).unwrap_or_default()
        };
        let account = peer.account();
        if let Some(key) = &key
            && let Some(known) = core.kills().with_key(&account, key, &fingerprint)?
        {
            return core.kills().answer(&known, request.wait).await;
        }
        let order = Order::read(&request)?;
        let taken = core.limits().take(Good::Work, &peer.budget())?;
        let (caller, asked) = (Arc::clone(peer), request.clone());
        let (root, lineage, envoy, marks) = core
            .at_work(peer, move |core| {
                let (snapshot, subreapers) = core.snapshot_with_subreapers()?;
                let view = View::new(&snapshot, &caller);
                let root = view.find(&asked.process, core.handles())?;
                let envoy = envoy(&caller)?;
                check(&view, root, envoy.as_deref())?;
                let forest = Forest::new(snapshot.records.iter().copied());
                if !asked.force {
                    check_is_not_own(&caller, root, &snapshot, &forest)?;
                }
                let mut marks = Marks::default();
                if asked.dry_run || !asked.force {
                    let clients = mps_clients(&forest, root, envoy.as_deref());
                    if asked.dry_run {
                        marks = Marks::look(&forest, &subreapers, root, clients, &[]);
                    } else {
                        clients.check()?;
                    }
                }
                Ok((root, forest.ancestors(&root), envoy, marks))
            })
            .await?;
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

impl Kill {
    fn answer(&self) -> Answer {
        let mut body = match (&self.state, &self.result) {
            (State::Done, Some(Value::Object(report))) => report.clone(),
            _ => serde_json::Map::new(),
        };
        if self.state == State::Failed
            && let Some(problem) = &self.result
            && let Ok(problem) = serde_json::from_value::<Problem>(problem.clone())
        {
            return problem.into();
        }
        body.insert("id".to_owned(), self.id.clone().into());
        let state = serde_json::to_value(self.state).unwrap_or_default();
        body.insert("state".to_owned(), state);
        let status = if self.state == State::Running {
            202
        } else {
            200
        };
        Answer::object(status, &Value::Object(body))
    }
}

/// What is ordered, read.
struct Order {
    signal: Option<Signal>,
    grace: Duration,
    timeout: Duration,
}

impl Order {
    fn read(request: &KillRequest) -> Result<Self, Problem> {
        let wrong =
            |name: &str, why: String| Problem::new(Code::InvalidRequest, format!("{name}: {why}"));
        let limited = |name, text: &Option<String>, most: Duration| {
            let Some(text) = text else { return Ok(None) };
            let time = parse_duration(text).map_err(|why| wrong(name, why))?;
            if time > most {
                return Err(wrong(name, format!("at most {} s", most.as_secs())));
            }
            Ok(Some(time))
        };
        let signal = request.signal.as_deref().map(parse_signal);
        let signal = signal.transpose().map_err(|why| wrong("signal", why))?;
        let grace = limited("grace", &request.grace, GRACE_MAX)?;
        let timeout = limited("timeout", &request.timeout, TIMEOUT_MAX)?;
        let asks = signal.is_some() || grace.is_some();
        if request
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > 1_024)
        {
            return Err(wrong("reason", "at most 1024 bytes".to_owned()));
        }
        Ok(Self {
            signal: asks.then(|| signal.unwrap_or(Signal::TERM)),
            grace: grace.unwrap_or(Duration::from_secs(if asks { 10 } else { 0 })),
            timeout: timeout.unwrap_or(Duration::from_secs(30)),
        })
    }

    fn options(&self, core: &Core, envoy: Option<Arc<dyn Envoy>>, dry_run: bool) -> KillOptions {
        KillOptions {
            first_signal: self.signal,
            grace: self.grace,
            timeout: self.timeout,
            dry_run,
            protected: protected(core),
            envoy,
            ..KillOptions::default()
        }
    }
}

/// Ends a tree, on this thread.
fn execute(root: ProcessId, options: &KillOptions) -> Result<KillReport, KillError> {
    crate::sys::priority::go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    runtime()?.block_on(kill_tree(tracker, root, options))
}

/// Ends trees as one, on this thread; `others` are alive.
pub(super) fn execute_all(
    root: ProcessId,
    others: &[ProcessId],
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    crate::sys::priority::go_first();
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    runtime()?.block_on(kill_trees(tracker, root, others, options))
}

fn runtime() -> Result<tokio::runtime::Runtime, KillError> {
    let runtime = current_thread();
    runtime.map_err(KillError::NotPrepared)
}

/// Returns what the failure of a kill is for its caller.
fn problem_of(error: &KillError) -> Problem {
    let code = match error {
        KillError::Refused(_) => Code::Protected,
        KillError::Kernel(crate::Error::NoProcess(_)) => Code::NoSuchProcess,
        KillError::Kernel(crate::Error::NoSlot | crate::Error::NoLayer) => Code::NoTreeLeft,
        KillError::Unsendable(_) => Code::InvalidRequest,
        _ => Code::Unavailable,
    };
    Problem::new(code, error.to_string())
}

fn problem_value(problem: &Problem) -> Value {
    serde_json::to_value(problem).unwrap_or_default()
}

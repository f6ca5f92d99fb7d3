//! Waiting for the end of something, for a caller: by descriptors and rings, never by asking again
//! and again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::ProcessId;
use crate::gpu::holders::DeviceFiles;
use crate::kernel::{LoadOptions, Tracker};
use crate::report;
use crate::wait::{Until, Waited, Waiting};

use super::Core;
use crate::agent::call::{Answer, WaitRequest};
use crate::agent::limits::{Good, Taken};
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::time::parse_duration;
use crate::agent::view::View;
use crate::sys::runtime::current_thread;

/// The wait where none was asked for, and the longest.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// Processes of one wait at most.
const PROCESSES_MAX: usize = 64;

/// Waits for a caller.
pub(super) async fn wait(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    request: WaitRequest,
) -> Result<Answer, Problem> {
    let limit = request.timeout.as_deref().map(parse_duration);
    let limit = limit.transpose();
    let limit =
        limit.map_err(|why| Problem::new(Code::InvalidRequest, format!("timeout: {why}")))?;
    let limit = limit.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
    let until = request.until;
    let names = request.names();
    if !(1..=PROCESSES_MAX).contains(&names.len()) {
        let detail = format!("from 1 to {PROCESSES_MAX} processes");
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    let budget = peer.budget();
    let work = core.limits().take(Good::Work, &budget)?;
    let tree = core.limits().take_tree(&budget)?;
    let caller = Arc::clone(peer);
    let roots: Vec<_> = core
        .at_work(peer, move |core| {
            let snapshot = core.snapshot()?;
            let view = View::new(&snapshot, &caller);
            let found = names.iter().map(|name| view.find(name, core.handles()));
            found.collect::<Result<_, _>>()
        })
        .await?;
    let mut waited = on_a_thread((work, tree), roots.clone(), until, limit).await?;
    if !peer.scope(peer.rights.sees).is_all() {
        // The dead of others are none of the caller's business, and of the dead of a container
        // nothing says that they were of it.
        let own = peer.scope(peer.rights.sees).uid_of_ghosts();
        let is_own = |process: &crate::Process| {
            roots.contains(&process.id) || (own.is_some() && process.uid == own)
        };
        waited.died = waited.died.filter(|(process, _)| is_own(process));
    }
    let json = report::wait::json(&waited);
    let json = json.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(Answer::json(200, json))
}

/// Follows trees on a thread of its own, because that looks at maps; ends with its caller. What was
/// taken for it is given back when the thread ends, which gives back the slot itself.
async fn on_a_thread(
    taken: (Taken, [Taken; 2]),
    roots: Vec<ProcessId>,
    until: Until,
    limit: Duration,
) -> Result<Waited, Problem> {
    let (done, result) = oneshot::channel();
    let run = move || {
        let runtime = current_thread();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let mut done = done;
            let followed = tokio::select! {
                followed = follow(roots, until, limit) => followed,
                () = done.closed() => return,
            };
            let _ = done.send(followed);
        });
        drop(taken);
    };
    let started = std::thread::Builder::new()
        .name("wait".to_owned())
        .spawn(run);
    started.map_err(|error| Problem::new(Code::Unavailable, error.to_string()))?;
    let ended = || Problem::new(Code::Internal, "the wait has ended early");
    result.await.map_err(|_| ended())?
}

async fn follow(roots: Vec<ProcessId>, until: Until, limit: Duration) -> Result<Waited, Problem> {
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let snapshot = tracker.snapshot()?;
    let has_gpus = DeviceFiles::default().exist();
    let mut waiting = Waiting::begin(tracker, &snapshot, roots, until, has_gpus)?;
    let holds = waiting.holds(Some(limit)).await?;
    Ok(waiting.end(holds))
}

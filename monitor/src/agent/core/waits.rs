//! Waiting for the end of something, for a caller: by descriptors and rings, never by asking again
//! and again.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::ProcessId;
use crate::gpu::nvml::{ANSWER_TIMEOUT, Server};
use crate::gpu::release::{News, Releases};
use crate::kernel::{LoadOptions, Tracker, WatchOptions, clock};
use crate::proc::{self, OWN_PROGRAM};
use crate::session::{Session, Update};
use crate::sys::pidfd;
use crate::watch::What;

use super::Core;
use crate::agent::call::{Answer, Until, WaitRequest};
use crate::agent::limits::Good;
use crate::agent::peer::Peer;
use crate::agent::problem::{Code, Problem};
use crate::agent::time::parse_duration;
use crate::agent::view::View;
use crate::sys::runtime::current_thread;

/// The wait where none was asked for, and the longest.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_hours(1);

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
    let _work = core.limits().take(Good::Work, &peer.account())?;
    let _tree = match request.until {
        Until::Extinct | Until::AnyExit => Some(core.limits().take(Good::Tree, &peer.account())?),
        Until::Gone | Until::Released => None,
    };
    let (caller, name) = (Arc::clone(peer), request.process);
    let root = core
        .at_work(peer, move |core| {
            let snapshot = core.snapshot()?;
            View::new(&snapshot, &caller).find(&name, core.handles())
        })
        .await?;
    let until = request.until;
    let waited = timeout(limit, async {
        match until {
            Until::Gone => gone(root).await,
            Until::Released => {
                gone(root).await?;
                released(root).await
            }
            Until::Extinct | Until::AnyExit => on_a_thread(root, until).await,
        }
    })
    .await;
    let holds = match waited {
        Ok(result) => {
            result?;
            true
        }
        Err(_) => false,
    };
    let body = json!({
        "schema": crate::report::json::SCHEMA,
        "process": {"pid": root.pid, "start_ns": root.start_ns},
        "until": until,
        "holds": holds,
    });
    Ok(Answer::object(200, &body))
}

async fn gone(id: ProcessId) -> Result<(), Problem> {
    let failed = |error: std::io::Error| Problem::new(Code::Unavailable, error.to_string());
    let pidfd = match pidfd::open(id.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !proc::owns_pid(id) || pidfd::wait_until_gone(pidfd).await {
        return Ok(());
    }
    Err(Problem::new(
        Code::Unavailable,
        "the process cannot be waited for",
    ))
}

async fn released(id: ProcessId) -> Result<(), Problem> {
    let server = Server::new(std::path::Path::new(OWN_PROGRAM), ANSWER_TIMEOUT);
    let mut releases = Releases::follow(server, TIMEOUT_MAX);
    releases.died(id, clock::boot_ns());
    releases.close();
    match releases.next().await {
        Some(News::Released { .. }) | None => Ok(()),
        Some(_) => Err(Problem::new(
            Code::Unavailable,
            "the driver does not say whether memory is released",
        )),
    }
}

/// Follows a tree on a thread of its own, because that looks at maps; ends with its caller.
async fn on_a_thread(root: ProcessId, until: Until) -> Result<(), Problem> {
    let (done, result) = oneshot::channel();
    let run = move || {
        let runtime = current_thread();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let mut done = done;
            let followed = tokio::select! {
                followed = follow(root, until) => followed,
                () = done.closed() => return,
            };
            let _ = done.send(followed);
        });
    };
    let started = std::thread::Builder::new()
        .name("wait".to_owned())
        .spawn(run);
    started.map_err(|error| Problem::new(Code::Unavailable, error.to_string()))?;
    let ended = || Problem::new(Code::Internal, "the wait has ended early");
    result.await.map_err(|_| ended())?
}

async fn follow(root: ProcessId, until: Until) -> Result<(), Problem> {
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let (mut session, _) = match Session::start(tracker, root, &WatchOptions::default()) {
        Ok(started) => started,
        // Nothing is left of it.
        Err(crate::Error::NoProcess(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    session.ignore_gone();
    loop {
        for update in session.next().await? {
            let holds = match update {
                Update::Extinct | Update::End => true,
                Update::Happening(happening) => {
                    let is_exit = matches!(happening.what, What::Exit { .. });
                    until == Until::AnyExit && is_exit
                }
                Update::Lost { .. } => false,
            };
            if holds {
                return Ok(());
            }
        }
    }
}

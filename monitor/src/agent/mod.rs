//! The node agent: answers and kills for users who are not root and for programs in containers,
//! over a Unix socket, with the rights that the kernel says they have.
//!
//! Two processes: the core (`core`) has the capabilities and never parses what a caller has
//! written; the front (`front`) parses HTTP and has no capabilities. They talk over a socket
//! (`wire`, `call`).
//!
//! Reading order: `rights` (what a caller may: pure), `peer` (who a caller is), `naming` and `view`
//! (whom it names and sees), `call`, `problem`, `wire`, `front`, `core` with what it does for a
//! caller, `deputy`, and what these need: `limits`, `state`, `audit`, `handles`, `place`, `trim`.
//!
//! Seams: policies would ask `core::kills` as a caller does; metrics would read `limits` and
//! `core`.

mod audit;
mod call;
mod core;
pub(crate) mod deputy;
pub(crate) mod front;
mod handles;
mod limits;
mod naming;
mod peer;
mod place;
mod problem;
mod rights;
mod state;
mod time;
mod token;
mod trim;
mod view;
mod wire;

use std::io;
use std::path::PathBuf;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::kernel::{LoadOptions, Tracker};
use crate::proc;
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::memory;

use self::core::Core;
use place::Place;

/// Returns the description of the API, as JSON.
#[must_use]
pub fn openapi() -> String {
    front::routes::openapi()
}

/// The directory of the sockets.
pub(crate) const RUNTIME_DIR: &str = "/run/lifemon";
/// The main socket in it.
pub(crate) const SOCKET: &str = "lifemon.sock";

/// Options of the agent.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The directory of the sockets and the state.
    pub(crate) runtime_dir: PathBuf,
    /// The program that is started as the front.
    pub(crate) front: PathBuf,
    /// The group whose members see everything.
    pub(crate) readers: String,
    /// The group whose members may end everything.
    pub(crate) killers: String,
}

/// Runs the agent until it is asked to end.
///
/// # Errors
/// When it cannot work here, or another one does.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    memory::use_one_heap();
    raise_descriptor_limit();
    let place = Place::take(&options.runtime_dir)?;
    Tracker::switch_on(&LoadOptions::default())?;
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(serve(options, &place, tracker));
    runtime.shutdown_background();
    place.leave();
    ended
}

async fn serve(options: &Options, place: &Place, tracker: Tracker) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // First: who connects meanwhile waits, and what is taken over next can need every descriptor.
    let (main, handles) = (place.listen(SOCKET)?, place.listen("handle.sock")?);
    let host = peer::Host::look(&options.readers, &options.killers)?;
    let core = Core::start(
        host,
        epoch()?,
        tracker,
        &place.state(),
        options.front.clone(),
    )?;
    log::info!("listening on {}", place.path(SOCKET).display());
    Place::say_ready();
    loop {
        tokio::select! {
            () = accept(&main, |socket| core.accept(socket)) => {}
            () = accept(&handles, |socket| core.accept_handle(socket)) => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

async fn accept(listener: &UnixListener, take: impl FnOnce(tokio::net::UnixStream)) {
    match listener.accept().await {
        Ok((socket, _)) => take(socket),
        Err(error) => {
            // No descriptor is left, perhaps: trying at once would not find one.
            log::warn!("a connection cannot be accepted: {error}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// Returns a word for this start of the agent in this boot.
fn epoch() -> io::Result<String> {
    let boot = state::boot()?;
    let start_ns = proc::identify(std::process::id()).map_or(0, |own| own.start_ns);
    let word = token::new();
    let boot = &boot[..boot.len().min(8)];
    Ok(format!("{boot}-{start_ns:x}-{}", &word[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The description that is kept beside the code.
    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

    #[test]
    fn the_description_of_the_api_is_that_of_the_code() {
        let made = openapi();
        if std::env::var_os("LIFEMON_WRITE_OPENAPI").is_some() {
            std::fs::write(KEPT, &made).unwrap();
        }
        let kept = crate::sys::text::read(KEPT).unwrap_or_default();
        assert!(
            kept == made,
            "docs/openapi.json is not of this code: run the tests of lifemon once with \
             LIFEMON_WRITE_OPENAPI=1, and commit what that writes"
        );
    }

    #[test]
    fn every_call_of_the_design_is_described() {
        let described: serde_json::Value = serde_json::from_str(&openapi()).unwrap();
        for (path, method) in [
            ("/v1/tree", "get"),
            ("/v1/tree/{process}", "get"),
            ("/v1/orphans", "get"),
            ("/v1/gpu", "get"),
            ("/v1/explain/{process}", "get"),
            ("/v1/log", "get"),
            ("/v1/health/{process}", "get"),
            ("/v1/info", "get"),
            ("/v1/kills", "post"),
            ("/v1/kills/{id}", "get"),
            ("/v1/guards", "post"),
            ("/v1/guards", "get"),
            ("/v1/guards/{id}", "put"),
            ("/v1/guards/{id}", "delete"),
            ("/v1/wait", "post"),
            ("/v1/watches", "post"),
            ("/v1/watches/{id}", "delete"),
            ("/v1/events", "get"),
            ("/livez", "get"),
            ("/readyz", "get"),
        ] {
            assert!(
                described["paths"][path][method].is_object(),
                "{method} {path}"
            );
        }
    }
}

//! When the guardian was killed: everything of its tree is killed from here, by what the tracker
//! knows.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::kernel::Error;
use crate::kill::strike;
use crate::session::Session;

/// How long to go on.
const TIMEOUT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(1);

/// Kills until nothing of the tree can run, or the time is over.
pub(super) fn kill_all(session: &Session) -> Result<(), Error> {
    let begun = Instant::now();
    let watcher = session.watcher();
    while watcher.counters().live > 0 && begun.elapsed() < TIMEOUT {
        for id in watcher.live_members()? {
            // Who is dying needs no signal, and who may not be signalled cannot be.
            strike(watcher.tracker(), id, Signal::SIGKILL)?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

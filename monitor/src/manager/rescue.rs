//! When the guardian was killed: everything of its tree is killed from here, by what the tracker
//! knows. Each signal goes through the sandwich: the record is live, the pidfd is opened, the record
//! is still live.

use std::time::{Duration, Instant};

use lifemon_ebpf::{LIVE, ProcessId};

use crate::kernel::{Error, Tracker};
use crate::session::{Session, open_pidfd};
use crate::supervise::descendants::send;

/// How long to go on.
const TIMEOUT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(1);

/// Kills until nothing of the tree can run, or the time is over.
pub(super) fn kill_all(session: &Session) -> Result<(), Error> {
    let begun = Instant::now();
    let watcher = session.watcher();
    while watcher.counters().live > 0 && begun.elapsed() < TIMEOUT {
        for id in watcher.live_members()? {
            kill(watcher.tracker(), id)?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn kill(tracker: &Tracker, id: ProcessId) -> Result<(), Error> {
    if is_live(tracker, id)?
        && let Ok(pidfd) = open_pidfd(id.pid)
        && is_live(tracker, id)?
    {
        // Who is dying needs no signal, and who may not be signalled cannot be.
        let _ = send(&pidfd, libc::SIGKILL);
    }
    Ok(())
}

fn is_live(tracker: &Tracker, id: ProcessId) -> Result<bool, Error> {
    let record = tracker.record(&id)?;
    Ok(record.is_some_and(|record| record.state == LIVE))
}

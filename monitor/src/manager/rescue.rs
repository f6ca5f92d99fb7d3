//! When the guardian was killed: everything of its tree is killed from here, by what the tracker
//! knows.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::ProcessId;
use crate::kernel::Error;
use crate::kill::Force;
use crate::session::{Session, Update};

/// How long to go on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Kills until nothing of the tree can run, or the time is over; those who are left.
pub(super) async fn kill_all(session: &mut Session) -> Result<Vec<ProcessId>, Error> {
    let deadline = Instant::now() + TIMEOUT;
    let mut force = Force::begin(session.watcher_mut())?;
    while session.watcher().counters().live > 0 && Instant::now() < deadline {
        let due = force.advance(session.watcher()).await?;
        // The server needs its descriptors itself.
        force.let_go();
        let Ok(updates) = timeout_at(deadline.min(due), session.next()).await else {
            continue;
        };
        if updates?.iter().any(|update| matches!(update, Update::End)) {
            break;
        }
    }
    if session.watcher().counters().live == 0 {
        return Ok(Vec::new());
    }
    session.watcher().live_members()
}

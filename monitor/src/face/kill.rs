//! The exact kill for those who have a runtime to look after, and for those who have none.

use std::io;

use tokio::sync::oneshot;

use super::Root;
use crate::kernel::{LoadOptions, Tracker, clock};
use crate::kill::{self, KillError, KillOptions, KillReport};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::runtime::current_thread;

/// Kills a tree: every process of it, nobody else, and the proof that none can run again.
///
/// The kill runs on a thread of its own, which gets a real-time priority while it kills, where that
/// is permitted; the caller's thread is left as it is. The limit of open descriptors is raised for
/// the whole process, as far as it may be: each process that is killed costs one. Needs a tokio
/// runtime.
///
/// Dropping the future gives everything back: nothing stays condemned, and nothing stays attached.
/// Signals that were sent stay sent. The root may be dead: then its descendants are killed. A root
/// that is named by its pid alone is refused where it is younger than the call, and where that pid
/// was also that of a dead process with living descendants.
///
/// ```no_run
/// use lifemon::{KillError, KillOptions, kill_tree};
///
/// async fn end(pid: u32) -> Result<bool, KillError> {
///     let report = kill_tree(pid, &KillOptions::new()).await?;
///     for survivor in &report.outcome.survivors {
///         let reason = survivor.reason.as_deref().unwrap_or("no reason is known");
///         eprintln!("{} is still alive: {reason}", survivor.process.id.pid);
///     }
///     Ok(report.is_done())
/// }
/// ```
///
/// # Errors
/// [`KillError`]. Survivors are no error: the report has them.
pub async fn kill_tree(
    root: impl Into<Root>,
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    let begun_ns = clock::boot_ns();
    let (root, options) = (root.into(), options.clone());
    // Dropped with this future: the kill gives up then.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let killing = tokio::task::spawn_blocking(move || {
        run(async {
            tokio::select! {
                done = kill(root, begun_ns, &options) => done,
                _ = unwanted => Err(KillError::NotPrepared(io::ErrorKind::Interrupted.into())),
            }
        })
    });
    let done = killing.await;
    done.unwrap_or_else(|error| Err(KillError::NotPrepared(io::Error::other(error))))
}

/// Kills a tree as [`kill_tree`] does, on the calling thread, and returns when it is done.
///
/// What it does to the caller: the calling thread gets a real-time priority (`SCHED_FIFO`, 1) while
/// it kills, where that is permitted, and the usual one (`SCHED_OTHER`) afterwards, whatever it had
/// before. A thread that keeps the processor for itself serves nobody else, so call it on one of
/// its own. The limit of open descriptors stays raised for the whole process. It must not be called
/// from within a tokio runtime, which would panic: that is what [`kill_tree`] is for.
///
/// ```no_run
/// use std::time::Duration;
///
/// use lifemon::{KillOptions, Signal, kill_tree_blocking};
///
/// # fn main() -> Result<(), lifemon::KillError> {
/// let options = KillOptions::new()
///     .first_signal(Signal::TERM)
///     .grace(Duration::from_secs(10));
/// let report = kill_tree_blocking(4200, &options)?;
/// println!("{} killed in {:?}", report.outcome.killed.len(), report.elapsed);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`kill_tree`].
pub fn kill_tree_blocking(
    root: impl Into<Root>,
    options: &KillOptions,
) -> Result<KillReport, KillError> {
    let begun_ns = clock::boot_ns();
    run(kill(root.into(), begun_ns, options))
}

/// Runs a kill on this thread.
fn run(kill: impl Future<Output = Result<KillReport, KillError>>) -> Result<KillReport, KillError> {
    raise_descriptor_limit();
    let runtime = current_thread().map_err(KillError::NotPrepared)?;
    runtime.block_on(kill)
}

async fn kill(root: Root, begun_ns: u64, options: &KillOptions) -> Result<KillReport, KillError> {
    let tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let root = root.find_to_kill(&tracker.snapshot()?, begun_ns)?;
    kill::kill_tree(tracker, root, options).await
}

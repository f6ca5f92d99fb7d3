//! `lifemon run`, and what it shares with the manager: a command in the care of two processes.
//!
//! The *owner* is the process that the user started (or the server). The *guardian* is its child
//! and the parent of the command. Both are subreapers, so whatever the command leaves behind
//! becomes a child of the guardian, and of the owner should the guardian be killed
//! (<https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n640>).
//! An unreaped child keeps its pid, so a signal to one is exact without any privilege. If either of
//! the two is killed, the other notices, also where it was stopped, and has the rest killed:
//! something is left behind only when both are killed at the same time.
//!
//! The command runs in the process group of the owner, as it would alone: what is sent to the group
//! reaches it without lifemon, and what is sent to the owner alone is handed on. A third process,
//! the *witness*, tells one from the other. The guardian has a session of its own: no signal to the
//! group ends it, and it is nobody who could continue a job that is stopped.
//!
//! They keep processes and give orders; killing is done by `kill::ending`.
//!
//! Reading order: `options` (what is asked for and what comes of it), [`frame`] and `message`,
//! `spawn` and `launch` (the start of workers, of the command), `serve` (the guardian at work),
//! `stops` (its part in job control), `lend` (what it does for servers below it), `executed` and `guardian` (its process, as itself and as its
//! parent has it), `witness`, `terminal`, `owner` (the user's side).

pub(crate) mod executed;
pub mod frame;
pub(crate) mod guardian;
mod launch;
mod lend;
pub(crate) mod message;
mod options;
mod owner;
pub(crate) mod serve;
pub(crate) mod spawn;
mod stops;
mod terminal;
mod witness;

pub use executed::run_if_asked;
pub use options::{Ended, RunError, RunOptions};
pub use owner::run;

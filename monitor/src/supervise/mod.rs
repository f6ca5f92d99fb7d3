//! `lifemon run`, and what it shares with the manager: a command in the care of two processes.
//!
//! The *owner* is the process that the user started (or the server). The *guardian* is its child
//! and the parent of the command. Both are subreapers, so whatever the command leaves behind
//! becomes a child of the guardian, and of the owner should the guardian be killed
//! (<https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n640>).
//! An unreaped child keeps its pid, so a signal to one is exact without any privilege. If either of
//! the two is killed, the other notices and has the rest killed: something is left behind only when
//! both are killed at the same time.
//!
//! Both keep processes and give orders; killing is done by `kill::ending`.
//!
//! Reading order: `options` (what is asked for and what comes of it), [`frame`] and `message`,
//! `spawn`, `serve` (the guardian at work), `guardian` (its process, as its parent has it),
//! `terminal`, `owner` (the user's side).

pub mod frame;
pub(crate) mod guardian;
pub(crate) mod message;
mod options;
mod owner;
pub(crate) mod serve;
pub(crate) mod spawn;
mod terminal;

pub use options::{Ended, RunError, RunOptions};
pub use owner::run;
pub use serve::run_if_asked;

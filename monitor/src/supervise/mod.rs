//! `lifemon run`, and what it shares with the manager: a command in the care of two processes.
//!
//! The *owner* is the process that the user started (or the server). The *nursery* is its child and
//! the parent of the command. Both are subreapers, so whatever the command leaves behind becomes a
//! child of the nursery, and of the owner should the nursery be killed. An unreaped child keeps its
//! pid, so a signal to one is exact without any privilege. If either of the two is killed, the other
//! notices and kills the rest: only who kills both at the same time leaves something behind.
//!
//! Reading order: [`descendants`] (exact signals to what is below this process),
//! [`census`] (who that is, for a list), [`killer`] (the tree kill with eBPF), [`ending`] (how the
//! rest dies), [`frame`] and [`message`], [`spawn`], [`nursery`], [`terminal`], [`owner`] (the user's
//! side), [`report`].

mod census;
pub(crate) mod descendants;
pub(crate) mod ending;
pub mod frame;
mod killer;
pub(crate) mod message;
pub mod nursery;
mod owner;
mod report;
pub(crate) mod spawn;
mod terminal;

pub use ending::{Rest, Way};
pub use owner::{Ended, RunError, RunOptions, run};

//! lifemon keeps the lineage of every process in the kernel and answers from it who belongs to
//! what, who died of what, and who was left behind.
//!
//! Reading order: [`process`] (the words), [`forest`] (the lineage at one time), [`watch`] (a tree
//! over time), [`kernel`] (the tracker), [`session`] (a watched tree, live), [`proc`] (what only
//! `/proc` knows), [`kill`] (exact tree kill), [`orphan`] (what was left behind), [`gpu`] (who
//! holds GPUs), [`tree`] (the lineage as it is shown), [`supervise`] (a command that leaves nothing
//! behind), [`manager`] (the workers of a server), [`doctor`] (what works here). With the feature
//! `cli` also `report` (text and JSON) and `cli`, which are the binary's.
//!
//! [`forest`] and [`watch`] do no I/O and read no clock; [`kernel`] alone names aya.

#[cfg(feature = "cli")]
pub mod cli;
pub mod doctor;
pub mod forest;
pub mod gpu;
pub mod kernel;
pub mod kill;
pub mod loss;
pub mod manager;
pub mod orphan;
pub mod proc;
pub mod process;
#[cfg(feature = "cli")]
pub mod report;
pub mod session;
pub mod supervise;
mod sys;
pub mod tree;
pub mod watch;
mod words;

pub use lifemon_ebpf::ProcessId;

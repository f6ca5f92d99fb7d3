//! Every way to end a tree: all of its processes, nobody else, and the proof that it has ended.
//!
//! - With eBPF (`exact`): the tree to kill is a watched tree of its own, with its own live
//!   counter. It is condemned; from then on what its members create is condemned as well, and the
//!   closer kills each of them on its next return from a system call (I4). What never calls the
//!   kernel is met by the killing passes over the membership map (`force`), each signal through
//!   the sandwich of `strike` (I3). The counter at 0 is the proof (I2).
//! - Without privileges (`below`): everything below a subreaper is found by walking (`walk`)
//!   and signalled through descriptors that were verified; `census` lists what has survived.
//! - What is below this very process (`ending`): nobody kills its own tree, so a child does it
//!   with eBPF (`child`), and this process the rest, or all of it where there are no privileges.
//!
//! A kill in the name of a user (`envoy`) sends its signals with the rights of that user.
//!
//! `refuse` says whom lifemon does not kill, `survivor` why somebody is still alive, `suspects` who
//! may have left the tree before anybody looked, `marks` what is noted of its members, [`outcome`]
//! what is ordered and what came of it.
//!
//! Where the root is older than tracking, whoever is older as well belongs by its present parents.
//! That takes in no stranger: an orphan goes to an ancestor of its (a subreaper), so what the root
//! or a member has adopted descends from it. There are two exceptions. Process 1 adopts everybody,
//! and is refused. The init of a pid namespace adopts what a process outside has put into its
//! namespace, and takes that along when it dies, whoever kills it. What is missed are orphans that
//! went to somebody above the root before tracking began: the answer is not complete, and whoever
//! looks like one is a suspect.
//!
//! What holds a process that has SIGKILL pending, held against everybody: a wait in the kernel that
//! is not interruptible, a frozen cgroup of version 1, a tracer that stops it in its exit. Such a
//! survivor runs no user code any more, and dies when it is let go.

mod below;
mod census;
mod child;
pub(crate) mod ending;
pub(crate) mod envoy;
mod exact;
mod force;
mod keep;
#[cfg(feature = "cli")]
pub(crate) mod marks;
mod options;
pub mod outcome;
mod refuse;
mod strike;
mod survivor;
mod suspects;
pub(crate) mod walk;

pub use exact::{KillError, kill_tree, kill_trees};
pub use options::KillOptions;
pub use outcome::{
    Held, KillReport, Killed, Outcome, Release, Released, Rest, Subject, Survivor, Suspect, Way,
};
pub use refuse::KillRefusal;

pub(crate) use below::kill_tree as kill_below;
pub(crate) use census::is_below;
pub(crate) use exact::kill_on_a_thread;
#[cfg(feature = "cli")]
pub(crate) use force::Force;
pub(crate) use force::kill_watched;
#[cfg(feature = "cli")]
pub(crate) use options::ReleaseOptions;
#[cfg(feature = "cli")]
pub(crate) use refuse::{Guard, check};
#[cfg(feature = "cli")]
pub(crate) use suspects::Suspects;

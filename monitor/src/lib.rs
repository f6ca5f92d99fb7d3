//! lifemon keeps the lineage of every process in the kernel and answers from it who belongs to
//! what, who died of what, and who was left behind; and it kills exactly that.
//!
//! | what you want | here |
//! |---|---|
//! | workers of a server, and nothing left of them | [`ProcessManager`], [`manager`] |
//! | a command that leaves nothing behind | [`run`] |
//! | a tree dead, and the proof of it | [`kill_tree`], [`kill_tree_blocking`] |
//! | what happens in a tree, as it happens | [`Watch`], a stream of [`Event`]s |
//! | the tree as it is, the dead included | [`tree`] |
//! | what was left behind | [`orphans`] |
//! | who holds GPUs | [`gpu_holders`] |
//! | what works here, and what is missing | [`doctor`] |
//!
//! Reports are plain types: `Serialize`, `Deserialize`, with public fields, and more of these can
//! come. Options are builders. Errors say what to do. A process is a [`ProcessId`], which is never
//! reused; a signal is a [`Signal`]; a time is a number of nanoseconds since boot, in a field whose
//! name ends in `_ns`, and [`WallClock`] says when that was.
//!
//! All but [`ProcessManager`] and [`run`] need root, or `CAP_BPF` and `CAP_PERFMON`. Where the
//! host's tracker is off (`lifemon track on`), each call loads one of its own, and the history
//! begins with it: the report says so ([`Loss::NoHistory`]).
//!
//! # Features
//! `cli` (on by default): the binary `lifemon`. `gpu` (on by default): NVIDIA's management library,
//! which the binary asks. The library needs neither: `default-features = false`.
#![cfg_attr(
    not(feature = "cli"),
    allow(
        dead_code,
        unused_imports,
        reason = "some parts serve the command line alone"
    )
)]
#![allow(
    unreachable_pub,
    reason = "modules are private: what leaves the crate is what this file names"
)]

// The rooms, from the ground to the top; what may import what is in `tests/architecture.rs`.
mod loss;
#[doc(hidden)]
pub mod process;
mod words;

#[doc(hidden)]
pub mod forest;
mod proc;
mod sys;

mod kernel;
#[doc(hidden)]
pub mod watch;

mod session;

mod client;
#[cfg(feature = "cli")]
mod deaths;
pub mod doctor;
#[cfg(feature = "cli")]
mod explain;
mod gpu;
mod kill;
mod orphan;
mod tree;
#[cfg(feature = "cli")]
mod wait;

mod face;
pub mod manager;
mod supervise;

#[cfg(feature = "cli")]
mod report;

#[cfg(feature = "agent")]
#[doc(hidden)]
pub mod agent;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;

#[doc(inline)]
pub use face::{
    Event, GpuHolder, GpuQuery, GpuReport, Lost, OrphanReport, Root, TreeReport, Watch,
    gpu_holders, kill_tree, kill_tree_blocking, orphans, tree,
};
pub use gpu::holders::{BadPattern, DeviceFiles};
pub use gpu::nvml::{Gpu, GpuProcess};
pub use gpu::{Holding, Kind as MemoryKind, Memory, Stranger};
pub use kernel::clock::WallClock;
pub use kernel::{Distrust, Error, Flaw, Refusal};
pub use kill::{
    Held, KillError, KillOptions, KillRefusal, KillReport, Killed, Outcome, Release, Released,
    Rest, Subject, Survivor, Suspect, Way,
};
pub use lifemon_ebpf::ProcessId;
pub use loss::{Incomplete, Loss};
#[doc(no_inline)]
pub use manager::ProcessManager;
pub use orphan::{Evidence, Orphan, Subtree, Verdict};
pub use proc::{CommandLine, Placement, Shared};
pub use process::{Cause, Death, Died, Name, NoSignal, Process, Sender, Signal, Who};
pub use session::{Ghost, LostAtStart, Start};
pub use supervise::{Ended, RunError, RunOptions, run};
pub use tree::{Entry, Live};
pub use watch::{Happening, What};

/// The blocks of `docs/library.md`, which are compiled as this crate's examples are. The file is
/// not part of the package, so it is read by doc tests alone.
#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
pub struct LibraryGuide;

//! The kernel half as userspace sees it: the only module that names aya or calls `bpf(2)`.
//!
//! Reading order: [`preflight`] (may it work here), [`btf`] (where the fields are), [`hooks`]
//! (which programs stand where), [`load`], `trusted` (paths that root may follow), [`place`] (where
//! pins are), [`lock`], [`pins`] (the tracker that stays), [`switch`] (on and off), [`tracker`]
//! (open maps, passes), [`snapshot`], `maps`, `slots`, `scene`, `label`,
//! `seat` and [`watcher`] (one watched
//! tree), [`left`] (what a watcher has seen left behind).

use std::io;

pub mod btf;
pub mod clock;
mod closer;
#[cfg(test)]
mod explore;
mod heal;
mod hooks;
mod label;
pub mod left;
pub mod load;
pub mod lock;
mod maps;
mod missed;
pub mod pins;
pub mod place;
pub mod preflight;
pub mod recorder;
pub(crate) mod sandwich;
mod scene;
mod seat;
mod shared;
mod slots;
pub mod snapshot;
pub mod switch;
mod sys;
pub mod tracker;
mod trusted;
pub mod watcher;

pub use closer::Closer;
pub use load::LoadOptions;
pub use preflight::Refusal;
pub use tracker::Tracker;
pub use trusted::{Distrust, Flaw};
pub use watcher::{WatchOptions, Watcher};

/// An error of the kernel half.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// lifemon cannot work here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel refused to load or attach a program.
    #[error("the kernel refused {what}: {reason}; `lifemon doctor` says what works here")]
    Load {
        /// The program.
        what: String,
        /// The kernel's word.
        reason: String,
    },
    /// The compiled kernel half lacks something: a defect of the build.
    #[error("the kernel half has no {0}: this binary was built wrongly")]
    NoProgram(&'static str),
    /// A map could not be read or written.
    #[error("cannot access the tracker's maps: {0}")]
    Map(#[source] io::Error),
    /// The BPF file system could not be used.
    #[error("cannot use the BPF file system: {0}; is it mounted, and is this root?")]
    Pin(#[source] io::Error),
    /// Something that lifemon did not make stands where its pins are.
    #[error("{0}; nothing was changed: look what it is, remove it, and try again")]
    Foreign(#[source] Distrust),
    /// There is no directory that only root could have made and can change.
    #[error("no place for the tracker: {shared}, and {own}; run this as root, on the host")]
    NoPlace {
        /// The flaw of the BPF file system of the host.
        shared: Distrust,
        /// The flaw of one of lifemon's own.
        own: Distrust,
    },
    /// Another process has held the lock of the tracker for too long.
    #[error(
        "{holder} has been using the tracker for {waited_s} s; wait until it has ended, or end it, \
         and try again"
    )]
    Locked {
        /// The process that holds it.
        holder: String,
        /// The time that was waited, in seconds.
        waited_s: u64,
    },
    /// The user asked to stop while another process held the lock of the tracker.
    #[error("interrupted while waiting for {holder}, which is using the tracker")]
    Interrupted {
        /// The process that holds it.
        holder: String,
    },
    /// The tracing files could not be mounted.
    #[error(
        "cannot see the kernel's tracepoints: {0}; mount them (mount -t tracefs tracefs \
        /sys/kernel/tracing)"
    )]
    NoTraceFs(#[source] io::Error),
    /// Every slot of a watched tree is taken.
    #[error(
        "all {} slots are taken by other watchers; end one of them first",
        lifemon_ebpf::limits::TREE_SLOTS - 1 - lifemon_ebpf::limits::KILL_SLOTS
    )]
    NoSlot,
    /// The tree overlaps with as many others as there are layers.
    #[error(
        "this tree overlaps with {} others that are watched; end one of them first",
        lifemon_ebpf::limits::LAYERS - 1
    )]
    NoLayer,
    /// The process has no record (any more).
    #[error("no such process: {0}")]
    NoProcess(String),
}

impl Error {
    fn load(what: &str, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        // The verifier's log is for developers (-vv); the first line says what happened.
        log::debug!("{what}: {reason}");
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        Self::Load {
            what: what.to_owned(),
            reason,
        }
    }
}

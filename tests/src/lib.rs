//! Harness of the end-to-end tests: a sandbox per test, actor programs in it, the lifemon binary
//! beside it. It knows lifemon only as a program; what the tests claim is in `e2e/`.

mod actor;
pub mod agent;
pub mod bpf;
mod cgroup;
pub mod closer;
mod freezer;
mod group;
pub mod handicap;
mod json_lines;
pub mod killing;
pub mod left_behind;
mod lifemon;
mod lock;
mod needs;
pub mod nvml;
mod own_mounts;
mod pidfd;
pub mod proc;
pub mod reports;
mod sandbox;
mod scale;
pub mod schema;
mod script;
pub mod story;
mod stream;
mod toll;
pub mod torch;
mod tracker;
mod wait;
mod watching;

pub use actor::{Actor, Process};
pub use freezer::Freezer;
pub use group::Group;
pub use json_lines::JsonLines;
pub use lifemon::{Lifemon, Output, Running};
pub use lock::{HostLock, host_lock, private_lock};
pub use needs::{has_programs, has_python_with, has_su};
pub use own_mounts::OwnMounts;
pub use pidfd::Pidfd;
pub use sandbox::Sandbox;
pub use scale::{scaled, stretched};
pub use script::Script;
pub use story::Story;
pub use stream::{Finished, Stream};
pub use toll::{HeldUp, Toll};
pub use tracker::{HostTracker, run_alone};
pub use wait::{poll, wait_until};
pub use watching::{Watching, can_preempt_tracepoints, has_other_hooks, says_who_is_last};

use std::time::Duration;

/// How long a test waits for anything unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_mins(1);

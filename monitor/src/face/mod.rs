//! The functions at the root of the crate: each opens the tracker, asks one question or gives one
//! order, and returns a report of types that can be sent as JSON. Nothing is decided here.

mod gpu;
mod kill;
mod lineage;
mod root;
mod watch;

pub use gpu::{GpuHolder, GpuQuery, GpuReport, gpu_holders};
pub use kill::{kill_tree, kill_tree_blocking};
pub use lineage::{OrphanReport, TreeReport, orphans, tree};
pub use root::Root;
pub use watch::{Event, Lost, Watch};

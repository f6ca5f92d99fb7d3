//! Everything that is printed: [`stream`], [`kill`], [`tree`], [`orphans`] and [`gpu`] turn what
//! they are named after into text for people and JSON for scripts, of the same pieces ([`text`],
//! [`json`], `holding`, [`ended`]); [`out`] is where it goes.

pub mod ended;
pub mod explain;
pub mod gpu;
mod holding;
pub mod json;
pub mod kill;
pub mod log;
pub mod orphans;
pub mod out;
pub mod run;
pub mod schema;
pub mod stream;
pub mod text;
pub mod tree;
pub mod wait;
pub mod zombies;

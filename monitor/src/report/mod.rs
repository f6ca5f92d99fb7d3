//! How lifemon speaks: [`json`] for scripts, [`text`] for people, [`kill`], [`tree`], [`orphans`]
//! and [`gpu`] for both of what they are named after, [`out`] for where it goes.

pub mod gpu;
pub mod json;
pub mod kill;
pub mod orphans;
pub mod out;
pub mod run;
pub mod text;
pub mod tree;

//! How lifemon speaks: [`json`] for scripts, [`text`] for people, [`kill`] for both of
//! what a kill came to, [`out`] for where it goes.

pub mod json;
pub mod kill;
pub mod out;
pub mod text;

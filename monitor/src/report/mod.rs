//! How lifemon speaks: [`json`] for scripts, [`text`] for people, [`out`] for where it goes.

pub mod json;
pub mod out;
pub mod text;

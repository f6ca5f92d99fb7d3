//! What the tasks (`cargo xtask`) and the guests of their tests share: running programs, as root
//! too, building with cargo, installing Debian's packages, and reading what tests print.

pub mod cargo;
pub mod command;
pub mod libtest;
pub mod packages;
pub mod privilege;
pub mod toolchain;

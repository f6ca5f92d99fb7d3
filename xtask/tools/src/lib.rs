//! What the tasks (`cargo xtask`) and the guests of their tests share: running programs, as root
//! too, building with cargo, installing Debian's packages, and reading what tests print.

pub mod cargo;
pub mod command;
#[path = "../../../monitor/build/kernel_half.rs"]
pub mod kernel_half;
pub mod libtest;
pub mod made_with;
pub mod packages;
pub mod privilege;
#[path = "../../../monitor/build/toolchain.rs"]
pub mod toolchain;

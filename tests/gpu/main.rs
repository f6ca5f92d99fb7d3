//! The tests with a real GPU of NVIDIA: one executable, run by `cargo xtask test --gpu` alone, one
//! test after the other, because each counts the memory of the whole GPU. The workloads are
//! `PyTorch`'s.
//! What each has measured is printed: `--show-output`.

mod deaths;
mod held;
mod keepers;
mod left_behind;
mod namespaces;
mod shared;

//! What the kernel half and userspace share: identities, records, events, limits and the rules of
//! the lineage and of membership. It is written once, here, so that the two halves cannot disagree.
//!
//! Nothing here touches a map, a pointer of the kernel or a clock: all of it is tested on the host.

#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a call costs a frame of the 512-byte stack, and the verifier follows values better \
              within one function"
)]

#[cfg(all(test, not(target_arch = "bpf")))]
extern crate std;

mod abi;
#[cfg(not(target_arch = "bpf"))]
mod json;
pub mod learning;
pub mod lifecycle;
pub mod limits;
pub mod membership;
pub mod offsets;
pub mod recorder;
pub mod records;
pub mod rules;
mod view;

pub use abi::*;

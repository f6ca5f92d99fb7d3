//! Words that nobody guesses: ids of kills and guards, tokens of handles.

use rustix::rand::{GetRandomFlags, getrandom};

/// Returns 128 random bits in hexadecimal.
pub(super) fn new() -> String {
    let mut bytes = [0_u8; 16];
    // So few bytes come whole, or the kernel is not ready: then it waits.
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    format!("{:032x}", u128::from_ne_bytes(bytes))
}

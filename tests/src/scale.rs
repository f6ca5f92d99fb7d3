//! How much a test asks of the machine: all of it, or a part where that is slow (an emulator).

/// Divides the counts of the heaviest tests.
const SCALE: &str = "LIFEMON_TEST_SCALE";

/// `count`, or the part of it that `LIFEMON_TEST_SCALE` asks for; never less than 1.
///
/// # Panics
/// When the variable is no number above 0.
#[must_use]
pub fn scaled(count: u64) -> u64 {
    let Ok(scale) = std::env::var(SCALE) else {
        return count;
    };
    let scale: u64 = scale
        .parse()
        .unwrap_or_else(|_| panic!("{SCALE} is a number"));
    assert!(scale > 0, "{SCALE} is above 0");
    (count / scale).max(1)
}

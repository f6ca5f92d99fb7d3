//! How much a test asks of the machine: all of it, or a part where that is slow (an emulator).

use std::time::Duration;

/// Divides the counts of the heaviest tests.
const SCALE: &str = "LIFEMON_TEST_SCALE";

/// Returns `time`, or as much longer as a machine that is asked for less needs for the same.
///
/// # Panics
/// When the variable is no number above 0.
#[must_use]
pub fn stretched(time: Duration) -> Duration {
    // Loads are divided by less than what such a machine is slower.
    match scale() {
        1 => time,
        scale => time * scale * 2,
    }
}

/// Returns `count`, or the part of it that `LIFEMON_TEST_SCALE` asks for; never less than 1.
///
/// # Panics
/// When the variable is no number above 0.
#[must_use]
pub fn scaled(count: u64) -> u64 {
    (count / u64::from(scale())).max(1)
}

fn scale() -> u32 {
    let Ok(scale) = std::env::var(SCALE) else {
        return 1;
    };
    let scale: u32 = scale
        .parse()
        .unwrap_or_else(|_| panic!("{SCALE} is a number"));
    assert!(scale > 0, "{SCALE} is above 0");
    scale
}

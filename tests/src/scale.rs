//! How much a test asks of the machine: all of it, or a part where that is slow (an emulator).

use std::time::Duration;

/// Divides the counts of the heaviest tests; `1/5` makes them five times as large.
const SCALE: &str = "LIFEMON_TEST_SCALE";

/// What the variable asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Part(u32),
    Times(u32),
}

/// Returns `time`, or as much longer as a machine that is asked for less needs for the same.
///
/// # Panics
/// When the variable is no number above 0.
#[must_use]
pub fn stretched(time: Duration) -> Duration {
    // Loads are divided by less than what such a machine is slower.
    match scale() {
        Scale::Part(1) | Scale::Times(_) => time,
        Scale::Part(part) => time * part * 2,
    }
}

/// Returns `count`, or the part of it that `LIFEMON_TEST_SCALE` asks for, or as many times as much;
/// never less than 1.
///
/// # Panics
/// When the variable is no number above 0.
#[must_use]
pub fn scaled(count: u64) -> u64 {
    match scale() {
        Scale::Part(part) => (count / u64::from(part)).max(1),
        Scale::Times(times) => count * u64::from(times),
    }
}

fn scale() -> Scale {
    let Ok(text) = std::env::var(SCALE) else {
        return Scale::Part(1);
    };
    parse(&text).unwrap_or_else(|| panic!("{SCALE} is a number above 0, or 1/ and one"))
}

fn parse(text: &str) -> Option<Scale> {
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    match text.strip_prefix("1/") {
        Some(times) => number(times).map(Scale::Times),
        None => number(text).map(Scale::Part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_part_or_so_many_times() {
        assert_eq!(parse("4"), Some(Scale::Part(4)));
        assert_eq!(parse("1/5"), Some(Scale::Times(5)));
        for wrong in ["", "0", "1/0", "2/5", "-1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

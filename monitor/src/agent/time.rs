//! Times and signals as requests write them: as the command line does.

use std::time::Duration;

use crate::process::Signal;

/// Reads `500ms`, `10s`, `5m`, `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time like 10s, 500ms, 5m or 1h";
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| EXPECTED.to_owned())?;
    let ms = match &text[digits..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    ms.map(Duration::from_millis)
        .ok_or_else(|| EXPECTED.to_owned())
}

/// Reads `TERM`, `SIGTERM`, `term` or `15`: a signal that can come first.
pub(super) fn parse_signal(text: &str) -> Result<Signal, String> {
    Signal::named(text).ok_or_else(|| "expected a signal below 32, like TERM".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_signals_as_they_are_written() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        for wrong in ["", "s", "10 s", "-1s", "99999999999999999999s", "5d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was read");
        }
        for right in ["TERM", "sigterm", "15"] {
            assert_eq!(parse_signal(right), Ok(Signal::TERM));
        }
        for wrong in ["", "0", "64", "TERMINATE", "\u{0}"] {
            assert!(parse_signal(wrong).is_err(), "{wrong:?} was read");
        }
    }
}

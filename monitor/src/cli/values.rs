//! The values of options as they are typed: times, numbers of processes, sizes of rings.

use std::time::Duration;

/// Reads `10s`, `1.5s`, `500ms`, `5m`, `1h`, or seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time like 10s, 1.5s, 500ms, 5m or 1h".to_owned();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let length = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(length);
    let unit_us: u64 = match unit {
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(wrong()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    // Six digits are more than anybody measures by.
    let digits = part.len().min(6);
    let parts: u64 = part[..digits].parse().map_err(|_| wrong())?;
    part.parse::<f64>().map_err(|_| wrong())?;
    let us = whole.checked_mul(unit_us).ok_or_else(wrong)?;
    // At most a million days in millionths: it fits.
    let us = us.checked_add(parts * unit_us / 10_u64.pow(digits as u32));
    us.map(Duration::from_micros).ok_or_else(wrong)
}

/// Reads a number of processes: at least a few, at most what a map can hold.
pub(super) fn parse_capacity(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 16..=4_194_304) => Ok(number),
        _ => Err("a number from 16 to 4194304".to_owned()),
    }
}

/// Reads the size of a ring: `64K`, `1M`, or bytes.
pub(super) fn parse_ring_size(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bytes: Option<u32> = digits.parse().ok().and_then(|n: u32| n.checked_mul(factor));
    match bytes {
        Some(bytes @ 4_096..=268_435_456) if bytes.is_power_of_two() => Ok(bytes),
        _ => Err("a power of two from 4K to 256M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_they_are_typed() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0.5h"), Ok(Duration::from_mins(30)));
        for wrong in [
            ".5s",
            "1.s",
            "1.2.3s",
            "",
            "s",
            "1x",
            "-1s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} parsed");
        }
    }

    #[test]
    fn ring_sizes() {
        assert_eq!(parse_ring_size("4K"), Ok(4_096));
        assert_eq!(parse_ring_size("1M"), Ok(1 << 20));
        assert!(parse_ring_size("5000").is_err());
        assert!(parse_ring_size("4096M").is_err());
        assert!(parse_ring_size("").is_err());
    }
}

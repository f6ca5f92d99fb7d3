//! Times: the kernel's clock since boot, and what it is on the wall.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time now, in ns since boot, suspend included: the clock of all events and start
/// times.
#[must_use]
pub fn boot_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME)
}

fn read(clock: ClockId) -> u64 {
    ns(clock_gettime(clock).map(Duration::from).unwrap_or_default())
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the time so long before another one, in ns since boot; 0 where that was before boot.
#[must_use]
pub(crate) fn before(at_ns: u64, time: Duration) -> u64 {
    at_ns.saturating_sub(ns(time))
}

/// Translates times since boot into wall-clock times.
///
/// ```
/// use lifemon::WallClock;
///
/// let second = 1_000_000_000;
/// let clock = WallClock::now();
/// assert!(clock.rfc3339(0) < clock.rfc3339(second));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    /// Wall-clock time of boot, in ns since 1970.
    boot_unix_ns: u64,
}

impl WallClock {
    /// Reads both clocks now. A later change of the wall clock is not followed, so that times of
    /// one stream stay in order.
    #[must_use]
    pub fn now() -> Self {
        let before = boot_ns();
        let wall = read(ClockId::CLOCK_REALTIME);
        let between = u64::midpoint(before, boot_ns());
        Self {
            boot_unix_ns: wall.saturating_sub(between),
        }
    }

    /// Formats a time as people read it: the local date and time, to the millisecond, with the
    /// offset from UTC.
    #[must_use]
    pub fn local(&self, boot_ns: u64) -> String {
        self.zoned(boot_ns, "%Y-%m-%d %H:%M:%S.%3f%:z")
    }

    /// Formats a time as the local time of day, to the microsecond, with the offset from UTC.
    #[must_use]
    pub fn local_time(&self, boot_ns: u64) -> String {
        self.zoned(boot_ns, "%H:%M:%S.%6f%:z")
    }

    fn zoned(self, boot_ns: u64, format: &str) -> String {
        let unix = i128::from(self.boot_unix_ns.saturating_add(boot_ns));
        jiff::Timestamp::from_nanosecond(unix)
            .map(|time| time.to_zoned(jiff::tz::TimeZone::system()))
            .map(|time| time.strftime(format).to_string())
            .unwrap_or_default()
    }

    /// Formats a time as RFC 3339 in UTC, with nanoseconds.
    #[must_use]
    pub fn rfc3339(&self, boot_ns: u64) -> String {
        let unix = i128::from(self.boot_unix_ns.saturating_add(boot_ns));
        jiff::Timestamp::from_nanosecond(unix)
            .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string())
            .unwrap_or_default()
    }

    /// Reads a time of RFC 3339, in ns since boot; `None` where it is none, or before boot.
    #[cfg(feature = "agent")]
    #[must_use]
    pub(crate) fn boot_ns_of(self, rfc3339: &str) -> Option<u64> {
        let unix = rfc3339.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
        u64::try_from(unix - i128::from(self.boot_unix_ns)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_has_nine_digits() {
        let clock = WallClock {
            boot_unix_ns: 1_700_000_000_000_000_000,
        };
        assert_eq!(clock.rfc3339(5), "2023-11-14T22:13:20.000000005Z");
        #[cfg(feature = "agent")]
        {
            let read = |text| clock.boot_ns_of(text);
            assert_eq!(read("2023-11-14T22:13:20.000000005Z"), Some(5));
            assert_eq!(read("2023-11-14T22:13:19.999999999Z"), None);
            assert_eq!(read("soon"), None);
        }
    }

    #[test]
    fn the_boot_clock_moves_forward() {
        let before = boot_ns();
        assert!(boot_ns() >= before && before > 0);
    }
}

//! Counts passed and failed tests by the closing line of each test executable. Pure.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; …`; any other line is `None`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let counts = line.trim_start().strip_prefix("test result: ")?;
        let (_verdict, counts) = counts.split_once(". ")?;
        let count = |what| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
        };
        Some(Self {
            passed: count(" passed")?,
            failed: count(" failed")?,
        })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
                  finished in 0.02s";
        let failed = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; \
                      0 filtered out; finished in 1.00s";
        let mut sum = Counts::default();
        for line in [ok, failed] {
            sum += Counts::parse(line).expect("a closing line");
        }
        assert_eq!(sum.to_string(), "15 passed, 2 failed");
    }

    #[test]
    fn other_lines_are_not() {
        assert_eq!(Counts::parse("running 3 tests"), None);
        assert_eq!(Counts::parse("test result: what"), None);
        assert_eq!(Counts::parse("test a::b ... ok"), None);
    }
}

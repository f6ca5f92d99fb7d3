//! The stages of a long command: announces each, times it, stops at the first that fails, and
//! closes with a line for each and the number of tests.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use lifemon_tools::libtest::Counts;

struct Stage {
    name: &'static str,
    took: Duration,
    passed: bool,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "FAILED" };
        let took = self.took.as_secs_f64();
        write!(f, "{verdict:<6} {:<20} {took:>7.1} s", self.name)
    }
}

/// What has run so far.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<Stage>,
    /// Over all test executables of all stages.
    pub(crate) counts: Counts,
}

impl Stages {
    /// Runs one stage. It adds the tests it ran to the counts it is given.
    pub(crate) fn stage<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Counts) -> Result<T>,
    ) -> Result<T> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = work(&mut self.counts);
        self.done.push(Stage {
            name,
            took: start.elapsed(),
            passed: result.is_ok(),
        });
        result.with_context(|| format!("stage `{name}`"))
    }

    /// Prints the closing lines, for success and failure alike.
    pub(crate) fn close(&self) {
        eprintln!();
        for stage in &self.done {
            println!("{stage}");
        }
        println!("{}", self.counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_failed_stage_is_named_and_its_tests_still_count() {
        let mut stages = Stages::default();
        let failure = stages.stage("unit tests", |counts| -> Result<()> {
            counts.failed += 1;
            bail!("it broke")
        });
        assert_eq!(
            format!("{:#}", failure.unwrap_err()),
            "stage `unit tests`: it broke"
        );
        assert_eq!(stages.counts.failed, 1);
        assert!(stages.done[0].to_string().starts_with("FAILED unit tests"));
    }
}

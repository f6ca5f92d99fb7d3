//! Which of Debian's kernels are booted, and what lifemon has to do on each. Their exact versions
//! are whatever the suites hold today.

use anyhow::{Result, ensure};

use crate::architecture::Architecture;

/// What lifemon has to do on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Pass every test.
    Works,
    /// Say that the kernel is too old, and exit with 3.
    Refuses,
}

/// A suite of Debian with the kernel that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    /// As apt knows it.
    pub(crate) name: &'static str,
    /// The kernel in it: two numbers, or less where it moves.
    pub(crate) series: &'static str,
    /// The processor.
    pub(crate) architecture: Architecture,
    /// What lifemon has to do there.
    pub(crate) expected: Expected,
}

const fn works(name: &'static str, series: &'static str) -> Suite {
    Suite {
        name,
        series,
        architecture: Architecture::Amd64,
        expected: Expected::Works,
    }
}

/// Oldest first; the one that must be refused last.
pub(crate) const SUITES: [Suite; 5] = [
    works("bookworm", "6.1"),
    works("trixie", "6.12"),
    works("sid", "7"),
    works("trixie-backports", "newest"),
    Suite {
        name: "bullseye",
        series: "5.10",
        architecture: Architecture::Amd64,
        expected: Expected::Refuses,
    },
];

/// Only when it is asked for: everything is built once more for it.
pub(crate) const ARM64: Suite = Suite {
    name: "trixie",
    series: "arm64",
    architecture: Architecture::Arm64,
    expected: Expected::Works,
};

/// Returns those asked for by suite or by series.
pub(crate) fn chosen(asked: &[String]) -> Result<Vec<Suite>> {
    let is_meant =
        |suite: &Suite, word: &str| suite.series == word || suite.name == word && *suite != ARM64;
    let known = || SUITES.into_iter().chain([ARM64]);
    for word in asked {
        ensure!(
            known().any(|suite| is_meant(&suite, word)),
            "no kernel `{word}`: there are {}",
            known()
                .map(|suite| suite.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let is_asked = |suite: &Suite| asked.iter().any(|word| is_meant(suite, word));
    Ok(known().filter(is_asked).collect())
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.series, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &[&str]) -> Vec<&'static str> {
        let asked: Vec<String> = asked.iter().map(|&word| word.to_owned()).collect();
        let suites = chosen(&asked).expect("known");
        suites.iter().map(|suite| suite.name).collect()
    }

    #[test]
    fn kernels_are_named_by_series_or_suite() {
        assert_eq!(names(&["6.12"]), ["trixie"]);
        assert_eq!(names(&["sid", "6.1"]), ["bookworm", "sid"]);
        assert_eq!(names(&["trixie", "arm64"]), ["trixie", "trixie"]);
        assert_eq!(chosen(&["arm64".to_owned()]).expect("known"), [ARM64]);
    }

    #[test]
    fn an_unknown_kernel_is_answered_with_those_there_are() {
        let error = chosen(&["2.6".to_owned()]).expect_err("unknown");
        assert!(error.to_string().contains("6.12 (trixie)"), "{error}");
    }
}

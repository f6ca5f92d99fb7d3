//! Rust's test executables: which tests are in one, by module, how those of a module are run, and
//! what its closing line counts.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::AddAssign;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::output;

/// Options of a test executable that are followed by a value.
const WITH_VALUE: [&str; 7] = [
    "--test-threads",
    "--skip",
    "--logfile",
    "--color",
    "--format",
    "--shuffle-seed",
    "-Z",
];

/// What chooses tests, and so has done its work when the tests are known by name.
const CHOOSES: [&str; 2] = ["--exact", "--skip"];

/// A module at the root of a test executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its tests, by their whole names.
    pub tests: Vec<String>,
}

impl Module {
    /// Asks an executable for its tests. `args` may choose some of them, as when they are run.
    ///
    /// # Errors
    /// When the executable does not answer.
    pub fn list(executable: &Path, args: &[OsString]) -> Result<Vec<Self>> {
        let mut command = Command::new(executable);
        command.args(args.iter().filter(|arg| *arg != "--list"));
        command.args(["--list", "--format", "terse"]);
        let list = output(&mut command);
        let list = list.with_context(|| {
            let name = executable.display();
            format!("{name} does not list its tests: are the arguments for tests right?")
        })?;
        Ok(Self::read(&list))
    }

    /// Reads what `--list` prints, which is in the order of the names.
    fn read(list: &str) -> Vec<Self> {
        let mut modules: Vec<Self> = Vec::new();
        for test in list.lines().filter_map(|line| line.strip_suffix(": test")) {
            let name = test.split("::").next().unwrap_or(test);
            match modules.last_mut().filter(|last| last.name == name) {
                Some(module) => module.tests.push(test.to_owned()),
                None => modules.push(Self {
                    name: name.to_owned(),
                    tests: vec![test.to_owned()],
                }),
            }
        }
        modules
    }

    /// Returns the arguments with which an executable runs the tests of this module alone.
    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        // A name that is not exact would choose those that it is a part of as well.
        let tests = self.tests.iter().map(String::as_str);
        ["--exact"].into_iter().chain(tests)
    }
}

/// Returns those of the arguments for a test executable that do not choose tests.
#[must_use]
pub fn options<Arg: AsRef<OsStr>>(args: &[Arg]) -> Vec<&OsStr> {
    let mut options = Vec::new();
    let mut args = args.iter().map(AsRef::as_ref);
    while let Some(arg) = args.next() {
        let value = if WITH_VALUE.iter().any(|option| arg == *option) {
            args.next()
        } else {
            None
        };
        let text = arg.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        if name.starts_with('-') && !CHOOSES.contains(&name) {
            options.push(arg);
            options.extend(value);
        }
    }
    options
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; …`; any other line is `None`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
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
    fn tests_belong_to_the_modules_at_the_root() {
        let list = "kill::off::one: test\nkill::two: test\nkill_bombs::one: test\nalone: test\n";
        let modules = Module::read(list);
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["kill", "kill_bombs", "alone"]);
        let arguments: Vec<_> = modules[0].arguments().collect();
        assert_eq!(arguments, ["--exact", "kill::off::one", "kill::two"]);
    }

    #[test]
    fn what_chooses_tests_is_no_option() {
        let args = [
            "orphans",
            "--test-threads",
            "1",
            "--skip",
            "tree",
            "--skip=kill",
            "--exact",
            "--nocapture",
        ];
        assert_eq!(options(&args), ["--test-threads", "1", "--nocapture"]);
        assert_eq!(options(&["--color=never", "a"]), ["--color=never"]);
    }

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

//! `cargo xtask build`, and building programs for the other commands. Where cargo put a program is
//! read from its own messages: no guess about target directories.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::{cargo, check, run_lines};
use crate::setup::{self, Report};

/// A program, a test, or a library to be loaded by one, that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// Name of the target.
    pub(crate) name: String,
    /// Where the file is.
    pub(crate) path: PathBuf,
    /// Directory of its package.
    pub(crate) package_dir: PathBuf,
    /// Built as a test.
    pub(crate) is_test: bool,
}

/// The package of the end-to-end tests.
const TESTS: &str = "tests";

impl Executable {
    fn is_of(&self, package: &str) -> bool {
        self.package_dir.ends_with(package)
    }

    /// Whether it needs root.
    fn is_end_to_end(&self) -> bool {
        self.is_test && self.is_of(TESTS)
    }
}

/// Builds lifemon for release and says where it is.
pub(crate) fn build() -> Result<()> {
    setup::setup(Report::Changes)?;
    let lifemon = lifemon()?;
    eprintln!("built {}", lifemon.display());
    Ok(())
}

/// Builds lifemon for release.
pub(crate) fn lifemon() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "lifemon"]);
    find(executables(command)?, "lifemon")
}

/// The same without a word when there is nothing to do, and with one line when it takes time.
pub(crate) fn lifemon_quietly() -> Result<PathBuf> {
    const QUIET: Duration = Duration::from_secs(1);
    let mut command = cargo();
    command.args(["build", "--release", "--quiet", "--package", "lifemon"]);
    let (done, waiting) = mpsc::channel::<()>();
    let notice = thread::spawn(move || {
        if waiting.recv_timeout(QUIET) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("building lifemon");
        }
    });
    let built = executables(command);
    drop(done);
    // It only prints, and a line less is no failure.
    let _ = notice.join();
    find(built?, "lifemon")
}

/// Everything that the tests run, from one build.
#[derive(Debug)]
pub(crate) struct ForTests {
    /// The release build.
    pub(crate) lifemon: PathBuf,
    /// Tests that need no privileges.
    pub(crate) unit: Vec<Executable>,
    /// Tests that need root.
    pub(crate) end_to_end: Vec<Executable>,
    /// What the end-to-end tests start besides: the actors, an example, a library.
    pub(crate) helpers: Vec<PathBuf>,
}

/// Builds all of it at once, as it is released: what several of them need is built once. `adapt` may
/// make it a build for another machine.
pub(crate) fn for_tests(adapt: impl FnOnce(&mut Command)) -> Result<ForTests> {
    let mut command = cargo();
    command.args(["build", "--release", "--workspace", "--all-targets"]);
    command.args(["--features", "lifemon-tests/privileged"]);
    adapt(&mut command);
    let built = executables(command)?;
    let (tests, others): (Vec<_>, Vec<_>) = built.into_iter().partition(|built| built.is_test);
    let (mut end_to_end, unit): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(Executable::is_end_to_end);
    let helpers = others.iter().filter(|other| other.is_of(TESTS));
    // Cargo makes a test of each program as well, and in these there is none.
    let is_helper = |name: &String| helpers.clone().any(|helper| helper.name == *name);
    end_to_end.retain(|test| !is_helper(&test.name));
    let helpers = helpers.map(|helper| helper.path.clone()).collect();
    let lifemon = find(others, "lifemon")?;
    Ok(ForTests {
        lifemon,
        unit,
        end_to_end,
        helpers,
    })
}

/// Builds the actors and the benchmarks.
pub(crate) fn test_programs() -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "lifemon-tests", "--bins"]);
    executables(command)
}

/// Runs a cargo build, and returns what can be run afterwards.
pub(crate) fn executables(mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let mut executables = Vec::new();
    let status = run_lines(&mut command, |line| executables.extend(parse(line)))?;
    check(&command, status)?;
    Ok(executables)
}

/// The path of the program called `name`.
pub(crate) fn find(executables: Vec<Executable>, name: &str) -> Result<PathBuf> {
    executables
        .into_iter()
        .find(|executable| executable.name == name && !executable.is_test)
        .map(|executable| executable.path)
        .with_context(|| format!("cargo built no program called {name}: is its [[bin]] renamed?"))
}

/// One line of cargo's messages: most are not about an executable.
fn parse(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let target = &message["target"];
    // A library that a test puts in the way of lifemon is loaded, not run.
    let is_example = target["kind"][0] == "example";
    let loaded = is_example.then(|| message["filenames"][0].as_str());
    let path = message["executable"].as_str().or(loaded.flatten())?;
    Some(Executable {
        name: target["name"].as_str()?.to_owned(),
        path: path.into(),
        package_dir: manifest.parent()?.to_owned(),
        is_test: message["profile"]["test"].as_bool()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/src/tests/Cargo.toml",
            "target":{"name":"e2e","kind":["test"]},"profile":{"test":true},
            "executable":"/target/release/deps/e2e-1"}"#;
        let expected = Executable {
            name: "e2e".to_owned(),
            path: "/target/release/deps/e2e-1".into(),
            package_dir: "/src/tests".into(),
            is_test: true,
        };
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn a_library_to_be_loaded_counts() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/src/tests/Cargo.toml",
            "target":{"name":"double","kind":["example"]},"profile":{"test":false},
            "filenames":["/target/release/examples/libdouble.so"],"executable":null}"#;
        let path = parse(line).map(|built| built.path);
        assert_eq!(path, Some("/target/release/examples/libdouble.so".into()));
    }

    #[test]
    fn libraries_and_other_messages_are_passed_over() {
        let library = r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml",
            "target":{"name":"a"},"profile":{"test":false},"executable":null}"#;
        assert_eq!(parse(library), None);
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(parse("not JSON"), None);
    }
}

//! Building with cargo. Where it put a program is read from its own messages: no guess about target
//! directories.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::{cargo, check, run_lines};

/// A program, a test, or a library to be loaded by one, that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Name of the target.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Directory of its package.
    pub package_dir: PathBuf,
    /// Built as a test.
    pub is_test: bool,
}

/// The directory of the package with the end-to-end tests, and their target.
const TESTS: &str = "tests";
const END_TO_END: &str = "e2e";

/// The target of the tests that need a real GPU, and are run on request alone.
const GPU: &str = "gpu";

/// Builds lifemon for release.
///
/// # Errors
/// When it does not build.
pub fn lifemon() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "lifemon"]);
    find(executables(command)?, "lifemon")
}

/// Does the same without a word when there is nothing to do, and with one line when it takes time.
///
/// # Errors
/// When it does not build.
pub fn lifemon_quietly() -> Result<PathBuf> {
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
pub struct ForTests {
    /// The release build.
    pub lifemon: PathBuf,
    /// Tests that need no privileges.
    pub unit: Vec<Executable>,
    /// The tests that need root.
    pub end_to_end: Executable,
    /// The tests that need root and a real GPU.
    pub gpu: Executable,
    /// What the end-to-end tests start besides: the actors, an example, a library.
    pub helpers: Vec<PathBuf>,
}

/// Builds all of it at once, as it is released: what several of them need is built once. `adapt`
/// may make it a build for another machine.
///
/// # Errors
/// When something does not build.
pub fn for_tests(adapt: impl FnOnce(&mut Command)) -> Result<ForTests> {
    let mut command = cargo();
    command.args(["build", "--release", "--workspace", "--all-targets"]);
    command.args(["--features", "lifemon-tests/privileged"]);
    adapt(&mut command);
    let built = executables(command)?;
    let (tests, others): (Vec<_>, Vec<_>) = built.into_iter().partition(|built| built.is_test);
    let (privileged, unit): (Vec<_>, Vec<_>) = tests
        .into_iter()
        .partition(|test| [END_TO_END, GPU].contains(&test.name.as_str()));
    let (gpu, end_to_end): (Vec<_>, Vec<_>) =
        privileged.into_iter().partition(|test| test.name == GPU);
    let helpers = others.iter();
    let helpers = helpers.filter(|other| other.package_dir.ends_with(TESTS));
    let helpers = helpers.map(|helper| helper.path.clone()).collect();
    let lifemon = find(others, "lifemon")?;
    Ok(ForTests {
        lifemon,
        unit,
        end_to_end: only(end_to_end, END_TO_END)?,
        gpu: only(gpu, GPU)?,
        helpers,
    })
}

fn only(tests: Vec<Executable>, name: &str) -> Result<Executable> {
    let test = tests.into_iter().next();
    test.with_context(|| format!("cargo built no test called {name}: is its [[test]] renamed?"))
}

/// Builds the actors and the benchmarks.
///
/// # Errors
/// When they do not build.
pub fn test_programs() -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "lifemon-tests", "--bins"]);
    executables(command)
}

/// Runs a cargo build, and returns what can be run afterwards.
fn executables(mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let mut executables = Vec::new();
    let status = run_lines(&mut command, |line| executables.extend(parse(line)))?;
    check(&command, status)?;
    Ok(executables)
}

/// Returns the path of the program called `name`.
///
/// # Errors
/// When there is none.
pub fn find(executables: Vec<Executable>, name: &str) -> Result<PathBuf> {
    executables
        .into_iter()
        .find(|executable| executable.name == name && !executable.is_test)
        .map(|executable| executable.path)
        .with_context(|| format!("cargo built no program called {name}: is its [[bin]] renamed?"))
}

/// Reads one line of cargo's messages: most are not about an executable.
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

//! The tests of the Python package, by pytest: with the Python of this machine in every run, and on
//! request with each other one that is found, with real servers, and over the module that the
//! package replaces.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use lifemon_tools::command::{run, run_lines, shown};
use lifemon_tools::libtest::Counts;
use lifemon_tools::privilege::as_root;

/// What runs the tests.
const PYTEST: &str = "pytest>=8,<10";

/// Real servers, for the tests that want one.
const SERVERS: [&str; 3] = ["fastapi", "uvicorn", "uvloop"];

/// Minor versions of Python 3 that the package is for.
const MINORS: std::ops::RangeInclusive<u32> = 10..=14;

/// How long all tests with one Python may take: ten times what they take on a machine that does
/// nothing else.
const LIMIT: &str = "900";

/// The package that has the module which lifemon replaces, and the file in it.
const ORIGINAL: (&str, &str) = ("axolotl", "axolotl/scripts/process_cleanup.py");

/// Runs the tests with the Python that is first on `PATH`.
pub(crate) fn test(lifemon: &Path, counts: &mut Counts) -> Result<()> {
    let python = environment(Path::new("python3"), "target/python-tests", &[PYTEST])?;
    pytest(&python, lifemon, counts)
}

/// Runs the tests with every Python that is found, each with real servers, and the contract over
/// the original.
pub(crate) fn test_others(lifemon: &Path, counts: &mut Counts) -> Result<()> {
    let found = pythons();
    ensure!(
        !found.is_empty(),
        "no Python from 3.10 on is found on PATH or in ~/.pyenv"
    );
    let wanted: Vec<_> = [PYTEST].into_iter().chain(SERVERS).collect();
    let mut failed = Vec::new();
    for (minor, python) in found {
        let directory = format!("target/python-tests-3.{minor}");
        println!("Python 3.{minor}: {}", python.display());
        let python = environment(&python, &directory, &wanted)?;
        if let Err(error) = pytest(&python, lifemon, counts) {
            failed.push(format!("Python 3.{minor} ({error})"));
        }
    }
    if let Err(error) = original(counts) {
        failed.push(format!("the contract over the original ({error})"));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Makes a virtual environment with these packages; returns its Python.
fn environment(python: &Path, directory: &str, wanted: &[&str]) -> Result<PathBuf> {
    let ours = Path::new(directory).join("bin/python");
    let stamp = Path::new(directory).join("installed");
    let list = wanted.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == list) {
        return absolute(&ours);
    }
    let mut venv = Command::new(python);
    venv.args(["-m", "venv", "--clear", directory]);
    said(venv).context("install the package python3-venv, or another Python")?;
    let mut pip = Command::new(&ours);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip.args(wanted);
    said(pip)?;
    fs::write(stamp, list)?;
    absolute(&ours)
}

/// Makes a path absolute, and does not follow the link that a virtual environment lives by.
fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::env::current_dir()?.join(path))
}

/// Runs the tests from the source tree, as root: most of what they try needs that.
fn pytest(python: &Path, lifemon: &Path, counts: &mut Counts) -> Result<()> {
    let root = std::env::current_dir()?.join("python");
    let source = root.join("src");
    let variables: [(&str, &OsStr); 3] = [
        ("LIFEMON_BIN", lifemon.as_os_str()),
        ("PYTHONPATH", source.as_os_str()),
        // No file of root's in the source tree.
        ("PYTHONDONTWRITEBYTECODE", OsStr::new("1")),
    ];
    let mut command = as_root(Path::new("timeout"), &variables)?;
    command.args(["--foreground", "--kill-after=10", LIMIT]);
    command
        .arg(python)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]);
    command.current_dir(&root);
    counted(&mut command, counts)
}

/// Runs the contract over the module that lifemon replaces, to show which expectation is its own.
/// It kills by name and by pid, so it gets a pid namespace in which nobody else is.
fn original(counts: &mut Counts) -> Result<()> {
    let python = environment(Path::new("python3"), "target/python-tests", &[PYTEST])?;
    let directory = std::env::current_dir()?.join("target/python-original");
    let file = directory.join(ORIGINAL.1);
    if !file.exists() {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        said({
            pip.arg(&directory).arg(ORIGINAL.0);
            pip
        })?;
    }
    let root = std::env::current_dir()?.join("python");
    let source = root.join("src");
    let variables: [(&str, &OsStr); 3] = [
        ("LIFEMON_ORIGINAL", file.as_os_str()),
        ("PYTHONPATH", source.as_os_str()),
        ("PYTHONDONTWRITEBYTECODE", OsStr::new("1")),
    ];
    let mut command = as_root(Path::new("unshare"), &variables)?;
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "timeout"]);
    command.args(["--foreground", "--kill-after=10", LIMIT]);
    command
        .arg(python)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    command.arg("tests/test_contract.py").current_dir(&root);
    counted(&mut command, counts)
}

/// Returns each Python that the package is for, on `PATH` or of pyenv.
fn pythons() -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for minor in MINORS {
        let on_path = PathBuf::from(format!("python3.{minor}"));
        let of_pyenv = of_pyenv(minor);
        let works = |python: &PathBuf| {
            let mut command = Command::new(python);
            command.args(["-c", "import venv"]);
            command.output().is_ok_and(|output| output.status.success())
        };
        let first = of_pyenv.into_iter().chain([on_path]).find(works);
        found.extend(first.map(|python| (minor, python)));
    }
    found
}

/// Returns the Pythons of this version that pyenv has installed.
fn of_pyenv(minor: u32) -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = root.map(|root| fs::read_dir(root.join("versions")));
    let Some(Ok(versions)) = versions else {
        return Vec::new();
    };
    let begin = format!("3.{minor}.");
    let paths = versions.flatten().map(|version| version.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name.starts_with(&begin))
    };
    paths
        .filter(is_it)
        .map(|path| path.join("bin/python"))
        .collect()
}

/// Runs pytest, shows what it says, and adds up what its last line counts.
fn counted(command: &mut Command, counts: &mut Counts) -> Result<()> {
    eprintln!("{}", shown(command));
    let mut own = Counts::default();
    let status = run_lines(command, |line| {
        println!("{line}");
        if let Some(result) = parse(line) {
            own = result;
        }
    })?;
    if !status.success() && own.failed == 0 {
        own.failed = 1;
    }
    *counts += own;
    ensure!(status.success(), "pytest failed ({status})");
    ensure!(own.passed > 0, "pytest has run no test");
    Ok(())
}

/// Reads pytest's last line: `2 failed, 51 passed, 1 skipped in 4.00s`.
fn parse(line: &str) -> Option<Counts> {
    let (counts, time) = line.trim_matches(['=', ' ']).rsplit_once(" in ")?;
    if !time.split(' ').next()?.ends_with('s') {
        return None;
    }
    let mut found = Counts::default();
    let mut is_one = false;
    for part in counts.split(", ") {
        let (number, what) = part.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match what {
            "passed" => found.passed += number,
            "failed" | "error" | "errors" => found.failed += number,
            _ => {}
        }
        is_one = true;
    }
    is_one.then_some(found)
}

fn said(command: Command) -> Result<()> {
    eprintln!("{}", shown(&command));
    run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_pytest_is_counted() {
        let counted = |line| parse(line).map(|counts| counts.to_string());
        let of = |text: &str| Some(text.to_owned());
        assert_eq!(counted("51 passed in 4.00s"), of("51 passed, 0 failed"));
        assert_eq!(
            counted("2 failed, 94 passed, 1 skipped in 64.79s (0:01:04)"),
            of("94 passed, 2 failed")
        );
        assert_eq!(
            counted("=== 3 passed, 1 warning, 1 error in 0.53s ==="),
            of("3 passed, 1 failed")
        );
        assert_eq!(counted("lifemon: 3 killed in 4.2 ms"), None);
        assert_eq!(counted("tests/test_contract.py ....  [ 33%]"), None);
    }
}

//! What a guest consists of: busybox, lifemon, the actors and the end-to-end tests, each at the
//! path that it has here (the tests know the actors by it), the libraries they need, and the plan.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::architecture::Architecture;
use super::cpio::Archive;
use super::kernels::Expected;
use super::shares::place;
use crate::build::Executable;

const INIT: &str = include_str!("init.sh");
const INSTALL: &str = include_str!("install.sh");

/// How long one of the short commands may take in a guest.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);

/// What a guest keeps of its time to start, and to end by itself.
const ENDS: Duration = Duration::from_secs(20);

/// A test executable that takes longer than this hangs.
const HANGS: Duration = Duration::from_mins(4);

/// Or, where a guest has much time, longer than this part of it.
const HANGS_DIVISOR: u32 = 4;

/// With less than this left, a guest begins no more test executables: a slow machine leaves some out,
/// by name, rather than breaks off in the middle of one.
const STARTS: Duration = Duration::from_secs(40);

/// What travels into every guest.
#[derive(Debug)]
pub(super) struct Load {
    /// What all of it is built for.
    pub(super) architecture: Architecture,
    /// A static busybox.
    pub(super) busybox: PathBuf,
    /// The release build.
    pub(super) lifemon: PathBuf,
    /// What the tests start or load besides.
    pub(super) helpers: Vec<PathBuf>,
    /// The end-to-end tests.
    pub(super) tests: Vec<Executable>,
}

/// How the tests are run.
pub(super) struct Run<'a> {
    /// Loads are divided by this.
    pub(super) scale: u32,
    /// For the whole guest.
    pub(super) budget: Duration,
    /// Arguments for every test executable.
    pub(super) args: Vec<String>,
    /// Whether a test executable runs at all.
    pub(super) is_wanted: &'a dyn Fn(&str) -> bool,
}

/// The file system of a guest, as an archive.
pub(super) fn build(load: &Load, run: &Run<'_>, expected: Expected) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/tmp"] {
        archive.directory(Path::new(directory));
    }
    archive.file(Path::new("/init"), 0o755, INIT.as_bytes());
    let plan = plan(load, run, expected);
    archive.file(Path::new("/plan"), 0o644, plan.as_bytes());
    archive.file(Path::new("/bin/install"), 0o755, INSTALL.as_bytes());
    archive.copy(Path::new("/bin/busybox"), &load.busybox)?;
    // The first process is a script, and installs the rest.
    archive.link(Path::new("/bin/sh"), "busybox");
    let tests = load.tests.iter().map(|test| &test.path);
    let programs = [&load.lifemon]
        .into_iter()
        .chain(&load.helpers)
        .chain(tests);
    let programs: Vec<&PathBuf> = programs.collect();
    for program in &programs {
        archive.copy(program, program)?;
    }
    for (path, from) in load.architecture.libraries(&programs)? {
        archive.copy(&path, &from)?;
    }
    for test in &load.tests {
        archive.directory(&test.package_dir);
    }
    Ok(archive.finish())
}

/// A shell script: the sections in order.
fn plan(load: &Load, run: &Run<'_>, expected: Expected) -> String {
    let lifemon = quoted(&load.lifemon.to_string_lossy());
    let seconds = COMMAND_LIMIT.as_secs();
    let mut plan = format!(
        "export LIFEMON_BIN={lifemon} LIFEMON_TEST_SCALE={}\n\
         section doctor {seconds} {lifemon} doctor -o json\n",
        run.scale
    );
    match expected {
        Expected::Refuses => {
            plan.push_str(&format!("section refusal {seconds} {lifemon} attach 1\n"));
        }
        Expected::Works => {
            plan.push_str(&format!(
                "guest_seconds={} start_seconds={} hang_seconds={}\n",
                run.budget.saturating_sub(ENDS).as_secs(),
                STARTS.as_secs(),
                HANGS.max(run.budget / HANGS_DIVISOR).as_secs(),
            ));
            let tests = load.tests.iter();
            let mut tests: Vec<_> = tests.filter(|test| (run.is_wanted)(&test.name)).collect();
            tests.sort_by_key(|test| place(&test.name));
            for test in tests {
                plan.push_str(&test_section(test, run));
            }
        }
    }
    plan
}

/// One test executable, where cargo would run it. All its output is wanted: reasons of skipped
/// tests are in that of passed ones.
fn test_section(test: &Executable, run: &Run<'_>) -> String {
    let directory = quoted(&test.package_dir.to_string_lossy());
    let mut line = format!(
        "cd {directory}\nexport CARGO_MANIFEST_DIR={directory}\n\
         test_executable test-{} {} --show-output --color never",
        test.name,
        quoted(&test.path.to_string_lossy()),
    );
    for arg in &run.args {
        line.push(' ');
        line.push_str(&quoted(arg));
    }
    line.push('\n');
    line
}

/// As one word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command::output;

    #[test]
    fn words_survive_the_shell() {
        let word = "it's a `$HOME` \"word\"";
        let mut shell = Command::new("sh");
        let printed = output(shell.arg("-c").arg(format!("printf %s {}", quoted(word))));
        assert_eq!(printed.as_deref(), Some(word));
    }

    #[test]
    fn a_kernel_to_be_refused_gets_no_tests() {
        let load = Load {
            architecture: Architecture::Amd64,
            busybox: "/busybox".into(),
            lifemon: "/lifemon".into(),
            helpers: vec!["/actor".into()],
            tests: ["deaths", "load"]
                .map(|name| Executable {
                    name: name.to_owned(),
                    path: format!("/{name}-1").into(),
                    package_dir: "/tests".into(),
                    is_test: true,
                })
                .into(),
        };
        let run = Run {
            scale: 10,
            budget: Duration::from_mins(5),
            args: vec!["orphans".to_owned()],
            is_wanted: &|test| test != "load",
        };
        let plan = |expected| super::plan(&load, &run, expected);
        assert!(plan(Expected::Refuses).contains("section refusal 60 '/lifemon' attach 1"));
        assert!(!plan(Expected::Refuses).contains("test-"));
        let works = plan(Expected::Works);
        assert!(
            works.contains("\nguest_seconds=280 start_seconds=40 hang_seconds=240\n"),
            "{works}"
        );
        let section =
            "test_executable test-deaths '/deaths-1' --show-output --color never 'orphans'";
        assert!(works.contains(section), "{works}");
        assert!(!works.contains("test-load"), "{works}");
    }
}

//! What a guest consists of: busybox, lifemon, the actors and the end-to-end tests, each at the
//! path that it has here (the tests know the actors by it), the libraries they need, and the plan.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use lifemon_tools::cargo::Executable;
use lifemon_tools::libtest::Module;

use crate::architecture::Architecture;
use crate::cpio::Archive;
use crate::kernels::Expected;
use crate::shares::place;

const INIT: &str = include_str!("init.sh");
const INSTALL: &str = include_str!("install.sh");

/// How long one of the short commands may take in a guest.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);

/// What a guest keeps of its time to start, and to end by itself.
const ENDS: Duration = Duration::from_secs(20);

/// A module of tests that takes longer than this hangs.
const HANGS: Duration = Duration::from_mins(4);

/// Or, where a guest has much time, longer than this part of it.
const HANGS_DIVISOR: u32 = 4;

/// With less than this left, a guest begins no more modules: a slow machine leaves some out, by
/// name, rather than breaks off in the middle of one.
const STARTS: Duration = Duration::from_secs(40);

/// What travels into every guest.
#[derive(Debug)]
pub(crate) struct Load {
    /// What all of it is built for.
    pub(crate) architecture: Architecture,
    /// A static busybox.
    pub(crate) busybox: PathBuf,
    /// The release build.
    pub(crate) lifemon: PathBuf,
    /// What the tests start or load besides.
    pub(crate) helpers: Vec<PathBuf>,
    /// The end-to-end tests.
    pub(crate) tests: Executable,
    /// Their modules.
    pub(crate) modules: Vec<Module>,
}

/// How the tests are run.
pub(crate) struct Run<'a> {
    /// Loads are divided by this.
    pub(crate) scale: u32,
    /// For the whole guest.
    pub(crate) budget: Duration,
    /// How the tests are run.
    pub(crate) options: &'a [&'a OsStr],
    /// Whether a module runs at all.
    pub(crate) is_wanted: &'a dyn Fn(&str) -> bool,
}

/// Builds the file system of a guest, as an archive.
pub(crate) fn build(load: &Load, run: &Run<'_>, expected: Expected) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        archive.directory(Path::new(directory));
    }
    archive.file(Path::new("/init"), 0o755, INIT.as_bytes());
    let plan = plan(load, run, expected);
    archive.file(Path::new("/plan"), 0o644, plan.as_bytes());
    archive.file(Path::new("/bin/install"), 0o755, INSTALL.as_bytes());
    archive.copy(Path::new("/bin/busybox"), &load.busybox)?;
    // The first process is a script, and installs the rest.
    archive.link(Path::new("/bin/sh"), "busybox");
    let programs = [&load.lifemon, &load.tests.path].into_iter();
    let programs: Vec<&PathBuf> = programs.chain(&load.helpers).collect();
    for program in &programs {
        archive.copy(program, program)?;
    }
    for (path, from) in load.architecture.libraries(&programs)? {
        archive.copy(&path, &from)?;
    }
    archive.directory(&load.tests.package_dir);
    Ok(archive.finish())
}

/// Writes a shell script: the sections in order.
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
            // Where cargo would run them.
            let directory = quoted(&load.tests.package_dir.to_string_lossy());
            plan.push_str(&format!(
                "cd {directory}\nexport CARGO_MANIFEST_DIR={directory}\n\
                 guest_seconds={} start_seconds={} hang_seconds={}\n",
                run.budget.saturating_sub(ENDS).as_secs(),
                STARTS.as_secs(),
                HANGS.max(run.budget / HANGS_DIVISOR).as_secs(),
            ));
            let modules = load.modules.iter();
            let mut modules: Vec<_> = modules
                .filter(|module| (run.is_wanted)(&module.name))
                .collect();
            modules.sort_by_key(|module| place(&module.name));
            for module in modules {
                plan.push_str(&test_section(&load.tests, module, run.options));
            }
        }
    }
    plan
}

/// Writes the line for one module. All its output is wanted: reasons of skipped tests are in that
/// of passed ones.
fn test_section(tests: &Executable, module: &Module, options: &[&OsStr]) -> String {
    let mut line = format!(
        "test_module test-{} {} --show-output --color never",
        module.name,
        quoted(&tests.path.to_string_lossy()),
    );
    let options = options.iter().map(|option| option.to_string_lossy());
    for word in options.chain(module.arguments().map(Cow::from)) {
        line.push(' ');
        line.push_str(&quoted(&word));
    }
    line.push('\n');
    line
}

/// Returns it as one word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use lifemon_tools::command::output;

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
            tests: Executable {
                name: "e2e".to_owned(),
                path: "/e2e-1".into(),
                package_dir: "/tests".into(),
                is_test: true,
            },
            modules: ["deaths", "load"]
                .map(|name| Module {
                    name: name.to_owned(),
                    tests: vec![format!("{name}::one")],
                })
                .into(),
        };
        let run = Run {
            scale: 10,
            budget: Duration::from_mins(5),
            options: &["--test-threads=1".as_ref()],
            is_wanted: &|module| module != "load",
        };
        let plan = |expected| super::plan(&load, &run, expected);
        assert!(plan(Expected::Refuses).contains("section refusal 60 '/lifemon' attach 1"));
        assert!(!plan(Expected::Refuses).contains("test-"));
        let works = plan(Expected::Works);
        assert!(
            works.contains("\nguest_seconds=280 start_seconds=40 hang_seconds=240\n"),
            "{works}"
        );
        let section = "test_module test-deaths '/e2e-1' --show-output --color never \
                       '--test-threads=1' '--exact' 'deaths::one'";
        assert!(works.contains(section), "{works}");
        assert!(!works.contains("test-load"), "{works}");
    }
}

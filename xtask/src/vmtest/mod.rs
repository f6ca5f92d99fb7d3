//! `cargo xtask vmtest`: the end-to-end tests on Debian's kernels, each in an emulated machine. Here
//! the order of things: what is needed, which kernels, each guest, the verdict.

mod apt;
mod console;
mod cpio;
mod initramfs;
mod kernels;
mod packages;
mod qemu;
mod readme;
mod report;

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::build;
use crate::command::{self, shown};
use crate::privilege::as_root;
use crate::setup::{self, Report as Say};
use crate::test::end_to_end_tests;
use crate::toolchain::on_path;
use apt::Apt;
use console::Console;
use initramfs::{Load, Run};
use kernels::{Suite, chosen};
use packages::{Kernel, Packages};
use qemu::{EMULATOR, Machine};
use report::{Outcome, Ran, Report};

/// Continuous integration wants at least so many kernels.
const KERNELS_MIN: usize = 3;

/// The busybox of this suite.
const TOOLS_SUITE: &str = "bookworm";

/// What was typed.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this kernel, by series or by suite: 6.1, 6.12, 7, 5.10, trixie-backports (repeatable)
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// Only this test executable, as `lifecycle` (repeatable)
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Keeps the guests' file systems
    #[arg(long)]
    keep: bool,
    /// Writes the table of kernels into the README
    #[arg(long, conflicts_with_all = ["kernel", "test", "args"])]
    update_readme: bool,
    /// Divides the load of the heaviest tests (`LIFEMON_TEST_SCALE` in the guest)
    #[arg(long, value_name = "N", default_value_t = 10)]
    scale: u32,
    /// Ends a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 140)]
    deadline: u64,
    /// Arguments for every test executable: a filter, or an option of libtest
    #[arg(last = true)]
    args: Vec<String>,
}

/// Boots each kernel, and fails when one did not do what it has to.
pub(crate) fn vmtest(options: &Options) -> Result<()> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "the guests are x86-64 machines, and run only what is built on one"
    );
    let suites = chosen(&options.kernel)?;
    setup::setup(Say::Changes)?;
    install_emulator()?;
    let cache = cache()?;
    let _alone = lock(&cache)?;
    let packages = packages(&cache)?;
    let load = load(&packages, &options.test)?;
    let mut reports = Vec::new();
    for suite in suites {
        let outcome = match packages.kernel(suite) {
            Err(error) => Outcome::Skipped(format!("{error:#}")),
            Ok(kernel) => Outcome::Ran(Box::new(guest(options, &cache, &load, &kernel)?)),
        };
        let report = Report { suite, outcome };
        // At once: the next guest takes minutes.
        print!("{report}");
        io::stdout().flush()?;
        reports.push(report);
    }
    if options.update_readme {
        readme::update(&root()?.join("README.md"), &reports)?;
    }
    verdict(&reports, env::var_os("CI").is_some_and(|ci| ci == "true"))
}

fn install_emulator() -> Result<()> {
    if on_path(EMULATOR).is_some() {
        return Ok(());
    }
    let package = "qemu-system-x86";
    for words in [
        &["update"][..],
        &["install", "-y", "--no-install-recommends", package],
    ] {
        let mut command = as_root(Path::new("apt-get"), &[])?;
        command.args(words);
        eprintln!("install {package}: {}", shown(&command));
        command::run(command).with_context(|| format!("cannot install {package}"))?;
    }
    Ok(())
}

/// Outside the repository: what is fetched serves every checkout.
fn cache() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let base = base.filter(|path| path.is_absolute());
    let cache = base
        .unwrap_or_else(|| "/var/cache".into())
        .join("lifemon/vmtest");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// One at a time: two would disturb each other's deadlines, and share these files.
fn lock(cache: &Path) -> Result<File> {
    let file = File::create(cache.join("lock"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another vmtest to end");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
    }
    Ok(file)
}

fn packages(cache: &Path) -> Result<Packages> {
    let apt = Apt::prepare(cache.join("apt"))?;
    if let Some(trouble) = apt.refresh()? {
        eprintln!("apt could not fetch every list:\n{}", trouble.trim_end());
    }
    let files = cache.join("files");
    fs::create_dir_all(&files)?;
    Ok(Packages::new(apt, files))
}

/// Builds what travels, here and once.
fn load(packages: &Packages, asked: &[String]) -> Result<Load> {
    let actor = build::find(build::test_programs()?, "actor")?;
    let mut tests = end_to_end_tests()?;
    tests.retain(|test| asked.is_empty() || asked.contains(&test.name));
    // Cargo names them as their builds end.
    tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Load {
        busybox: packages.busybox(TOOLS_SUITE)?,
        lifemon: build::lifemon()?,
        actor,
        tests,
    })
}

/// Boots one kernel.
fn guest(options: &Options, cache: &Path, load: &Load, kernel: &Kernel) -> Result<Ran> {
    let deadline = Duration::from_secs(options.deadline);
    let suite = kernel.suite;
    eprintln!("booting {suite}");
    let run = Run {
        scale: options.scale,
        // So that one that hangs leaves time for others.
        limit: deadline / 2,
        args: options.args.clone(),
    };
    let initramfs = cache.join(format!("{}.cpio", suite.name));
    fs::write(&initramfs, initramfs::build(load, &run, suite.expected)?)?;
    let consoles = cache.join("consoles");
    fs::create_dir_all(&consoles)?;
    let machine = Machine {
        image: &kernel.image,
        initramfs: &initramfs,
        console: &consoles.join(format!("{}.txt", suite.name)),
        processors: processors(),
        deadline,
    };
    let start = Instant::now();
    let mut console = Console::default();
    let end = qemu::boot(&machine, |line| {
        if let Some(section) = console.line(line) {
            let at = start.elapsed().as_secs();
            eprintln!("  {at:>4} s  {} ended", section.name);
        }
    });
    if options.keep {
        eprintln!("kept {}", initramfs.display());
    } else {
        fs::remove_file(&initramfs)?;
    }
    let mut ran = Ran::judge(suite.expected, &console, end?);
    ran.took = start.elapsed();
    ran.console = machine.console.to_path_buf();
    Ok(ran)
}

/// Two find races that one does not; more only wait for each other when emulated.
fn processors() -> u32 {
    let here = thread::available_parallelism().map_or(1, usize::from);
    if here > 1 { 2 } else { 1 }
}

/// The root of the workspace.
fn root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR").context("run this through cargo")?;
    let root = PathBuf::from(package).parent().map(Path::to_path_buf);
    root.context("the workspace is the directory above xtask")
}

fn verdict(reports: &[Report], is_ci: bool) -> Result<()> {
    let skipped: Vec<Suite> = reports
        .iter()
        .filter(|report| matches!(report.outcome, Outcome::Skipped(_)))
        .map(|report| report.suite)
        .collect();
    let had = reports.len() - skipped.len();
    ensure!(
        !is_ci || had >= KERNELS_MIN.min(reports.len()),
        "only {had} kernels could be had, and {KERNELS_MIN} are needed"
    );
    let failed: Vec<&str> = reports
        .iter()
        .filter_map(|report| match &report.outcome {
            Outcome::Ran(ran) if !ran.is_good() => Some(report.suite.name),
            _ => None,
        })
        .collect();
    ensure!(
        failed.is_empty(),
        "failed on the kernels of {}",
        failed.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::SUITES;

    fn skipped(suite: Suite) -> Report {
        let outcome = Outcome::Skipped("no network".to_owned());
        Report { suite, outcome }
    }

    fn good(suite: Suite) -> Report {
        let outcome = Outcome::Ran(Box::default());
        Report { suite, outcome }
    }

    #[test]
    fn a_kernel_that_cannot_be_had_is_an_error_only_where_few_are_left() {
        let reports = SUITES.map(skipped);
        assert!(verdict(&reports, false).is_ok());
        assert!(verdict(&reports, true).is_err());
        let three = [0, 1, 2].map(|at| good(SUITES[at]));
        let reports = [&three[..], &[skipped(SUITES[3])]].concat();
        assert!(verdict(&reports, true).is_ok());
        assert!(verdict(&[good(SUITES[0])], true).is_ok());
    }

    #[test]
    fn a_failed_kernel_is_named() {
        let mut report = good(SUITES[0]);
        if let Outcome::Ran(ran) = &mut report.outcome {
            ran.problems.push("it died".to_owned());
        }
        let error = verdict(&[report, good(SUITES[1])], false).unwrap_err();
        assert_eq!(error.to_string(), "failed on the kernels of bookworm");
    }
}

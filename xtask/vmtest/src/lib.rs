//! `cargo xtask vmtest`: the end-to-end tests on Debian's kernels, each in an emulated machine.
//! Here the order of things: what is needed, which kernels, the guests, the verdict.

mod apt;
mod architecture;
mod console;
mod cpio;
mod guests;
mod host;
mod initramfs;
mod kernels;
mod packages;
mod qemu;
mod report;
mod shares;
mod table;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lifemon_tools::cargo::{ForTests, for_tests};
use lifemon_tools::libtest::{Counts, Module};

use architecture::Architecture;
use guests::{ALL_BUDGET, GUEST_BUDGET, Plan, boot_all};
use host::Host;
use kernels::{Expected, SUITES, Suite, chosen};
use packages::Kernel;
use report::{Outcome, Report};

/// Continuous integration wants at least so many kernels that work.
const KERNELS_MIN: usize = 3;

/// The loads of the heaviest tests are divided by this in a guest.
const SCALE: u32 = 10;

/// The page with the table of kernels.
const TABLE: &str = "docs/kernels.md";

/// One guest with every test.
const EVERYTHING_BUDGET: Duration = Duration::from_mins(40);

/// What was typed.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only this kernel, by series or by suite: 6.1, 6.12, 7, 5.10, trixie-backports, or arm64,
    /// which is built for first (repeatable)
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// Only this module of tests, as `lifecycle` (repeatable)
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Every test on every kernel, which takes an hour: without it, or --test, each kernel gets a
    /// share
    #[arg(long)]
    everything: bool,
    /// Keeps the guests' file systems
    #[arg(long)]
    keep: bool,
    /// Writes the table of kernels into docs/kernels.md
    #[arg(long, conflicts_with_all = ["kernel", "test", "args"])]
    update_table: bool,
    /// Divides the load of the heaviest tests (`LIFEMON_TEST_SCALE` in the guest)
    #[arg(long, value_name = "N", default_value_t = SCALE)]
    scale: u32,
    /// Processors of a guest, which are emulated in turns
    #[arg(long, value_name = "N", default_value_t = 1)]
    processors: u32,
    /// Ends a guest after this many seconds, with no limit for all together
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// A part of the names of tests, or an option of libtest
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Boots each kernel. The machine is set up for builds already.
///
/// # Errors
/// When a kernel did not do what it has to, or nothing can be booted here.
pub fn vmtest(options: &Options) -> Result<()> {
    let suites = options.suites()?;
    let mut reports = Vec::new();
    for architecture in [Architecture::Amd64, Architecture::Arm64] {
        let of_it = |suite: &Suite| suite.architecture == architecture;
        let suites: Vec<Suite> = suites.iter().copied().filter(of_it).collect();
        if !suites.is_empty() {
            reports.extend(of_one(options, architecture, &suites)?);
        }
    }
    if options.update_table {
        ensure!(
            reports.iter().all(Report::is_whole),
            "the table stays as it is: there was no time for some of the tests"
        );
        table::update(&root()?.join(TABLE), &in_order(reports.clone()))?;
    }
    verdict(&reports, is_ci())
}

/// Runs the tests on the kernels of one architecture.
fn of_one(options: &Options, architecture: Architecture, suites: &[Suite]) -> Result<Vec<Report>> {
    let Fetched {
        host,
        kernels,
        mut reports,
    } = Fetched::of(architecture, suites)?;
    let built = for_tests(|command| architecture.build(command))?;
    // What is built for another processor cannot be asked here. The tests are the same.
    let list = |built: &ForTests| Module::list(&built.end_to_end.path, &options.args);
    let mut modules = match architecture.target() {
        None => list(&built)?,
        Some(_) => list(&for_tests(|_| {})?)?,
    };
    let is_wanted = |name: &String| options.test.is_empty() || options.test.contains(name);
    modules.retain(|module| is_wanted(&module.name));
    let load = host.load(built, modules);
    let (budget, all) = options.budgets();
    reports.extend(boot_all(
        &Plan {
            cache: &host.cache,
            load: &load,
            processors: options.processors,
            scale: options.scale,
            budget,
            end: Instant::now() + all,
            shares: !options.everything && options.test.is_empty(),
            keep: options.keep,
            args: &options.args,
        },
        &kernels,
    )?);
    Ok(reports)
}

impl Options {
    /// Returns the suites that are asked for; all of this architecture where none is.
    fn suites(&self) -> Result<Vec<Suite>> {
        if self.kernel.is_empty() {
            return Ok(SUITES.to_vec());
        }
        chosen(&self.kernel)
    }

    /// Returns the times for one guest, and for all of an architecture.
    fn budgets(&self) -> (Duration, Duration) {
        let everything = self.everything.then_some(EVERYTHING_BUDGET.as_secs());
        match self.deadline.or(everything) {
            None => (GUEST_BUDGET, ALL_BUDGET),
            Some(seconds) => {
                let budget = Duration::from_secs(seconds);
                (budget, budget * u32::try_from(SUITES.len()).unwrap_or(1))
            }
        }
    }
}

/// Fetches what guests need, of all kernels: for [`stage`], while other things are done.
///
/// # Errors
/// When this machine cannot have guests.
pub fn fetch() -> Result<Fetched> {
    Fetched::of(Architecture::Amd64, &SUITES)
}

/// Boots every kernel as the last stage of the tests, with what they have built. Where the guests
/// cannot be had that is said, and is an error only in continuous integration.
///
/// # Errors
/// When a kernel did not do what it has to.
pub fn stage(fetched: Result<Fetched>, built: ForTests, counts: &mut Counts) -> Result<()> {
    // Once more, when the network was not there.
    let fetched = fetched.or_else(|error| {
        eprintln!("trying again: {error:#}");
        fetch()
    });
    let modules = Module::list(&built.end_to_end.path, &[])?;
    let ready = fetched.map(|fetched| (fetched.host.load(built, modules), fetched));
    let (load, fetched) = match ready {
        Ok(ready) => ready,
        Err(error) if is_ci() => return Err(error),
        Err(error) => {
            println!("skipped: the tests on other kernels: {error:#}");
            return Ok(());
        }
    };
    let Fetched {
        host,
        kernels,
        mut reports,
    } = fetched;
    reports.extend(boot_all(
        &Plan {
            cache: &host.cache,
            load: &load,
            processors: 1,
            scale: SCALE,
            budget: GUEST_BUDGET,
            end: Instant::now() + ALL_BUDGET,
            shares: true,
            keep: false,
            args: &[],
        },
        &kernels,
    )?);
    for report in &reports {
        *counts += report.counts();
    }
    verdict(&reports, is_ci())
}

fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// This machine, and the kernels that could be had.
#[derive(Debug)]
pub struct Fetched {
    host: Host,
    kernels: Vec<Kernel>,
    /// On those that could not.
    reports: Vec<Report>,
}

impl Fetched {
    fn of(architecture: Architecture, suites: &[Suite]) -> Result<Self> {
        let host = Host::prepare(architecture, suites)?;
        let (kernels, reports) = host.kernels(suites);
        Ok(Self {
            host,
            kernels,
            reports,
        })
    }
}

/// Sorts reports as the suites are listed, whatever ended first.
fn in_order(mut reports: Vec<Report>) -> Vec<Report> {
    reports.sort_by_key(|report| SUITES.iter().position(|suite| *suite == report.suite));
    reports
}

/// Returns the root of the workspace.
fn root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR").context("run this through cargo")?;
    let root = PathBuf::from(package).parent().map(Path::to_path_buf);
    root.context("the workspace is the directory above xtask")
}

fn verdict(reports: &[Report], is_ci: bool) -> Result<()> {
    let works = |report: &&Report| report.suite.expected == Expected::Works;
    let is_had = |report: &&Report| matches!(report.outcome, Outcome::Ran(_));
    let wanted = reports.iter().filter(works);
    let had = wanted.clone().filter(is_had).count();
    ensure!(
        !is_ci || had >= KERNELS_MIN.min(wanted.count()),
        "only {had} kernels that work could be had, and {KERNELS_MIN} are needed"
    );
    let failed: Vec<String> = reports
        .iter()
        .filter_map(|report| match &report.outcome {
            Outcome::Ran(ran) if !ran.is_good() => {
                Some(format!("{} ({})", report.suite.name, ran.reasons()))
            }
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
        let mut working = SUITES.to_vec();
        working.retain(|suite| suite.expected == Expected::Works);
        let three = [0, 1, 2].map(|at| good(working[at]));
        let reports = [&three[..], &[skipped(working[3])]].concat();
        assert!(verdict(&reports, true).is_ok());
        // One that only refuses does not count.
        let reports = SUITES.map(|suite| match suite.expected {
            Expected::Works if suite != working[0] && suite != working[1] => skipped(suite),
            _ => good(suite),
        });
        assert!(verdict(&reports, true).is_err());
        assert!(verdict(&[good(SUITES[0])], true).is_ok());
    }

    #[test]
    fn a_failed_kernel_is_named() {
        let mut report = good(SUITES[0]);
        if let Outcome::Ran(ran) = &mut report.outcome {
            ran.problems.push("it died".to_owned());
        }
        let error = verdict(&[report, good(SUITES[1])], false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed on the kernels of bookworm (it died)"
        );
    }
}

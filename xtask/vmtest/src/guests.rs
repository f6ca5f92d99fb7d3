//! All guests of a run: as many side by side as there is room for, each within its own time and all
//! within one, so that a run ends whatever the kernels do.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lifemon_tools::libtest::options;

use crate::console::Console;
use crate::initramfs::{self, Load, Run};
use crate::kernels::{Expected, SUITES};
use crate::packages::Kernel;
use crate::qemu::{self, Machine};
use crate::report::{Outcome, Ran, Report};
use crate::shares::is_shared;

/// All guests together. What still runs then is ended and has failed.
pub(crate) const ALL_BUDGET: Duration = Duration::from_mins(10);

/// One guest: well above what its share takes on a busy machine, and one that hangs leaves time to
/// those after it.
pub(crate) const GUEST_BUDGET: Duration = Duration::from_secs(400);

/// Kept for the kernels that only refuse.
const SHORT_BUDGET: Duration = Duration::from_secs(30);

/// Guests side by side at most.
const SIDE_BY_SIDE_MAX: usize = 2;

/// What is the same for every guest of a run.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Where images, archives and consoles are kept.
    pub(crate) cache: &'a Path,
    /// What travels.
    pub(crate) load: &'a Load,
    /// Processors of a guest.
    pub(crate) processors: u32,
    /// Loads are divided by this.
    pub(crate) scale: u32,
    /// For one guest.
    pub(crate) budget: Duration,
    /// When everything ends.
    pub(crate) end: Instant,
    /// Whether each kernel gets its share of the tests, or all of them.
    pub(crate) shares: bool,
    /// Whether the guests' file systems are kept.
    pub(crate) keep: bool,
    /// Options for the tests, and what has chosen some of them.
    pub(crate) args: &'a [OsString],
}

/// Boots every kernel; each report is printed as soon as it is there.
pub(crate) fn boot_all(plan: &Plan<'_>, kernels: &[Kernel]) -> Result<Vec<Report>> {
    let left = Mutex::new(VecDeque::from(in_order(kernels)));
    let next = || {
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let time = plan.end.saturating_duration_since(Instant::now());
        let time = plan.budget.min(part(time, &left, side_by_side()));
        left.pop_front().map(|kernel| (kernel, time))
    };
    let work = || -> Result<Vec<Report>> {
        let mut reports = Vec::new();
        while let Some((kernel, time)) = next() {
            let report = Report {
                suite: kernel.suite,
                outcome: Outcome::Ran(Box::new(boot(plan, kernel, time)?)),
            };
            // At once: the next guest takes minutes.
            print!("{report}");
            io::stdout().flush()?;
            reports.push(report);
        }
        Ok(reports)
    };
    let mut reports = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..side_by_side()).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(of_one) => reports.extend(of_one?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })?;
    Ok(reports)
}

/// Sorts the kernels, the newest first: they have the most to do, and what is long should not start
/// last.
fn in_order(kernels: &[Kernel]) -> Vec<&Kernel> {
    let mut order: Vec<_> = kernels.iter().collect();
    let position = |kernel: &Kernel| SUITES.iter().position(|suite| *suite == kernel.suite);
    order.sort_by_key(|kernel| {
        let is_short = kernel.suite.expected == Expected::Refuses;
        (is_short, std::cmp::Reverse(position(kernel)))
    });
    order
}

/// Returns what the next guest may take of the time that is left, so that those after it have as
/// much, and the short ones at the end theirs.
fn part(left: Duration, kernels: &VecDeque<&Kernel>, side_by_side: usize) -> Duration {
    let is_long = |kernel: &&&Kernel| kernel.suite.expected == Expected::Works;
    let rounds = kernels
        .iter()
        .filter(is_long)
        .count()
        .div_ceil(side_by_side);
    match u32::try_from(rounds) {
        Ok(0) | Err(_) => left,
        Ok(rounds) => left.saturating_sub(SHORT_BUDGET) / rounds,
    }
}

fn processors_here() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn side_by_side() -> usize {
    processors_here().min(SIDE_BY_SIDE_MAX)
}

/// Boots one kernel, which may take until the deadline.
fn boot(plan: &Plan<'_>, kernel: &Kernel, deadline: Duration) -> Result<Ran> {
    let suite = kernel.suite;
    eprintln!("booting {suite}, for {} s at most", deadline.as_secs());
    let run = Run {
        scale: plan.scale,
        budget: deadline,
        options: &options(plan.args),
        is_wanted: &|module| !plan.shares || is_shared(suite, module),
    };
    let name = format!("{}-{}", suite.name, suite.architecture.debian());
    let initramfs = plan.cache.join(format!("{name}.cpio"));
    let archive = initramfs::build(plan.load, &run, suite.expected)?;
    fs::write(&initramfs, archive)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let consoles = plan.cache.join("consoles");
    fs::create_dir_all(&consoles)?;
    let machine = Machine {
        architecture: suite.architecture,
        processors: plan.processors,
        image: &kernel.image,
        initramfs: &initramfs,
        console: &consoles.join(format!("{name}.txt")),
        deadline,
    };
    let start = Instant::now();
    let mut console = Console::default();
    let end = qemu::boot(&machine, |line| {
        if let Some(section) = console.line(line) {
            let at = start.elapsed().as_secs();
            eprintln!("  {at:>4} s  {}: {} ended", suite.series, section.name);
        }
    });
    if plan.keep {
        eprintln!("kept {}", initramfs.display());
    } else {
        fs::remove_file(&initramfs)?;
    }
    let mut ran = Ran::judge(suite.expected, &console, end?);
    let left_out = plan.load.modules.iter().map(|module| module.name.as_str());
    let left_out = left_out.filter(|name| !(run.is_wanted)(name));
    ran.left_out = left_out.map(str::to_owned).collect();
    ran.took = start.elapsed();
    ran.console = machine.console.to_path_buf();
    Ok(ran)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_leaves_time_to_those_after_it() {
        let kernels = SUITES.map(|suite| Kernel {
            suite,
            image: "/image".into(),
        });
        let mut left = VecDeque::from(in_order(&kernels));
        let second = Duration::from_secs(1);
        let all = 600 * second;
        assert_eq!(part(all, &left, 2), 285 * second);
        assert_eq!(part(all, &left, 1), all.saturating_sub(SHORT_BUDGET) / 4);
        left.drain(..2);
        assert_eq!(part(430 * second, &left, 2), 400 * second);
        left.drain(..2);
        assert_eq!(part(31 * second, &left, 2), 31 * second);
    }

    #[test]
    fn the_longest_start_first_and_the_shortest_last() {
        let kernels = SUITES.map(|suite| Kernel {
            suite,
            image: "/image".into(),
        });
        let names: Vec<_> = in_order(&kernels)
            .into_iter()
            .map(|kernel| kernel.suite.name)
            .collect();
        let expected = ["trixie-backports", "sid", "trixie", "bookworm", "bullseye"];
        assert_eq!(names, expected);
    }
}

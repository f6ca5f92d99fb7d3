//! This machine as the host of guests: what they need is fetched into a cache outside the
//! repository, which one run at a time may use.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lifemon_tools::cargo::ForTests;
use lifemon_tools::libtest::Module;
use lifemon_tools::toolchain::on_path;

use crate::apt::Apt;
use crate::architecture::Architecture;
use crate::initramfs::Load;
use crate::kernels::{SUITES, Suite};
use crate::packages::{Kernel, Packages};
use crate::report::{Outcome, Report};

/// The busybox of this suite.
const TOOLS_SUITE: &str = "bookworm";

/// This machine with all that guests need.
#[derive(Debug)]
pub(crate) struct Host {
    architecture: Architecture,
    /// What is kept between runs.
    pub(crate) cache: PathBuf,
    packages: Packages,
    /// For the guests' first process; with the kernels, while the network is there.
    busybox: PathBuf,
    _alone: File,
}

impl Host {
    pub(crate) fn prepare(architecture: Architecture, suites: &[Suite]) -> Result<Self> {
        ensure!(
            env::consts::ARCH == "x86_64",
            "the guests are made on x86-64 machines only"
        );
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(
                on_path(tool).is_some(),
                "there is no {tool} here: the kernels come by Debian's own tools"
            );
        }
        architecture.set_up()?;
        let cache = cache()?;
        let alone = lock(&cache)?;
        let packages = packages(&cache, architecture, suites)?;
        let busybox = packages.busybox(TOOLS_SUITE)?;
        Ok(Self {
            architecture,
            cache,
            packages,
            busybox,
            _alone: alone,
        })
    }

    /// Loads what travels, with the tools of a guest.
    pub(crate) fn load(&self, built: ForTests, modules: Vec<Module>) -> Load {
        Load {
            architecture: self.architecture,
            busybox: self.busybox.clone(),
            lifemon: built.lifemon,
            helpers: built.helpers,
            tests: built.end_to_end,
            modules,
        }
    }

    /// Returns those that can be had, and a report on each that cannot.
    pub(crate) fn kernels(&self, suites: &[Suite]) -> (Vec<Kernel>, Vec<Report>) {
        let (mut kernels, mut reports) = (Vec::new(), Vec::new());
        for &suite in suites {
            match self.packages.kernel(suite) {
                Ok(kernel) => kernels.push(kernel),
                Err(error) => {
                    let report = Report {
                        suite,
                        outcome: Outcome::Skipped(format!("{error:#}")),
                    };
                    print!("{report}");
                    reports.push(report);
                }
            }
        }
        (kernels, reports)
    }
}

/// Returns a directory outside the repository: what is fetched serves every checkout.
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

/// Waits until this run is the only one: two would disturb each other's deadlines, and share these
/// files.
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

fn packages(cache: &Path, architecture: Architecture, suites: &[Suite]) -> Result<Packages> {
    // The lists of all suites of an architecture, whichever are wanted today: they stay fresh
    // together.
    let names = match architecture {
        Architecture::Amd64 => SUITES.map(|suite| suite.name).to_vec(),
        Architecture::Arm64 => suites
            .iter()
            .map(|suite| suite.name)
            .chain([TOOLS_SUITE])
            .collect(),
    };
    let directory = cache.join(format!("apt-{}", architecture.debian()));
    let apt = Apt::prepare(directory, architecture, &names)?;
    if let Some(trouble) = apt.refresh()? {
        eprintln!("apt could not fetch every list:\n{}", trouble.trim_end());
    }
    let files = cache.join("files");
    fs::create_dir_all(&files)?;
    Ok(Packages::new(apt, files))
}

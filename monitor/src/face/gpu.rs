//! Who holds GPUs, from device files and, where a program is named that asks it, from the driver.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::forest::Forest;
use crate::gpu::holders::{self, DeviceFiles};
use crate::gpu::nvml::{ANSWER_TIMEOUT, Answer, Gpu, Server};
use crate::gpu::{self, Holding, Stranger, Survey};
use crate::kernel::{Error, LoadOptions, Tracker, clock};
use crate::loss::Loss;
use crate::orphan::{self, Known, Orphan};
use crate::process::{Process, Who};

/// Options of a query for holders of GPUs.
#[derive(Debug, Clone)]
pub struct GpuQuery {
    devices: DeviceFiles,
    lifemon: Option<PathBuf>,
    driver_timeout: Duration,
}

impl Default for GpuQuery {
    fn default() -> Self {
        Self {
            devices: DeviceFiles::default(),
            lifemon: None,
            driver_timeout: ANSWER_TIMEOUT,
        }
    }
}

impl GpuQuery {
    /// Looks at the device files of NVIDIA, AMD and DRM, and asks no driver.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which device files count as GPUs.
    #[must_use]
    pub fn devices(mut self, devices: DeviceFiles) -> Self {
        self.devices = devices;
        self
    }

    /// Asks NVIDIA's driver for memory as well, with this `lifemon` binary: the driver can hang,
    /// where not even SIGKILL helps, so it is asked in a process that can be abandoned.
    #[must_use]
    pub fn ask_driver(mut self, lifemon: impl Into<PathBuf>) -> Self {
        self.lifemon = Some(lifemon.into());
        self
    }

    /// Sets how long the driver may take (10 s).
    #[must_use]
    pub const fn driver_timeout(mut self, timeout: Duration) -> Self {
        self.driver_timeout = timeout;
        self
    }
}

/// A process that holds a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuHolder {
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// The GPUs and the GPU memory that it holds.
    pub holding: Holding,
    /// The root of its tree.
    pub root: Who,
    /// True if that root is live.
    pub root_alive: bool,
    /// The orphan that it is or stands below; `None` where it is below none.
    pub orphan: Option<Orphan>,
}

/// The holders of GPUs, at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuReport {
    /// The GPUs that the driver knows; empty where it was not asked.
    pub gpus: Vec<Gpu>,
    /// Processes that hold something, oldest first.
    pub holders: Vec<GpuHolder>,
    /// Memory of pids that no living process of this host has.
    pub strangers: Vec<Stranger>,
    /// The losses that make the answer incomplete.
    pub losses: Vec<Loss>,
}

/// Finds the processes that hold GPUs, and the trees that they belong to.
///
/// ```no_run
/// use lifemon::{GpuQuery, gpu_holders};
///
/// # async fn show() -> Result<(), lifemon::Error> {
/// let query = GpuQuery::new().ask_driver("/usr/local/bin/lifemon");
/// for holder in gpu_holders(&query).await?.holders {
///     let bytes = holder.holding.memory_bytes().unwrap_or(0);
///     println!("{} of the tree of {}: {bytes} bytes", holder.process.id.pid, holder.root);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error`]: what is missing here. A driver that fails or hangs is a loss, not an error.
pub async fn gpu_holders(query: &GpuQuery) -> Result<GpuReport, Error> {
    let mut tracker = Tracker::open_or_load(&LoadOptions::default())?;
    let asked_ns = clock::boot_ns();
    let program = query.lifemon.as_ref();
    let mut server = program.map(|program| Server::new(program, query.driver_timeout));
    let answer = match &mut server {
        Some(server) => server.ask().await,
        None => Answer::NotAsked,
    };
    let snapshot = tracker.snapshot()?;
    let mut losses = snapshot.losses();
    let forest = Forest::new(snapshot.records);
    let scan = holders::scan(forest.all_living(), &query.devices);
    let survey = gpu::survey(&forest, answer, asked_ns, scan);
    losses.extend(survey.losses());
    let known = Known {
        forest: &forest,
        subreapers: &tracker.subreapers()?,
        holders: &survey.holders,
    };
    let orphans = orphan::with_gpus(&known);
    let above = orphan::above(&forest, &orphans, survey.holders.keys().copied());
    let mut holders: Vec<_> = survey
        .holders
        .iter()
        .filter_map(|(id, holding)| {
            let root = orphan::root_of(&forest, *id);
            Some(GpuHolder {
                process: Process::of_record(*id, forest.record(id)?),
                holding: holding.clone(),
                root: Process::of_record(root, forest.record(&root)?).who(),
                root_alive: forest.is_live(&root),
                orphan: above.get(id).map(|orphan| (*orphan).clone()),
            })
        })
        .collect();
    holders.sort_by_key(|holder| holder.process.id);
    let gpus = survey.gpus().to_vec();
    let Survey { strangers, .. } = survey;
    Ok(GpuReport {
        gpus,
        holders,
        strangers,
        losses,
    })
}

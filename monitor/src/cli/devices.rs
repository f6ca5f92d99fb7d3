//! The arguments that say which device files count as GPUs, shared by all commands that need them.

use std::path::PathBuf;

use super::Usage;
use crate::gpu::holders::DeviceFiles;
use crate::gpu::release::RELEASE_TIMEOUT;
use crate::kill::ReleaseOptions;

/// Arguments that choose device files.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Device files that count as GPUs, instead of those of NVIDIA, AMD and DRM; repeatable
    #[arg(long = "device", value_name = "GLOB")]
    devices: Vec<String>,
}

impl DeviceArgs {
    /// Returns whether files were chosen.
    pub(super) const fn are_chosen(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Returns the files.
    pub(super) fn files(&self) -> Result<DeviceFiles, Usage> {
        if self.devices.is_empty() {
            return Ok(DeviceFiles::default());
        }
        DeviceFiles::new(&self.devices).map_err(|error| Usage(error.to_string()))
    }
}

/// Returns how the release of GPU memory is waited for: not at all on a host without any of these
/// files.
pub(super) fn release(files: &DeviceFiles) -> Option<ReleaseOptions> {
    files.exist().then(|| ReleaseOptions {
        program: PathBuf::from(crate::proc::OWN_PROGRAM),
        timeout: RELEASE_TIMEOUT,
        files: files.clone(),
    })
}

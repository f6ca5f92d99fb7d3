//! NVIDIA's management library (NVML), loaded on the first query. Only the NVML process calls it.

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::{Answer, Gpu, GpuProcess};
use crate::gpu::Kind;

/// The library, loaded or not yet.
#[derive(Default)]
pub(super) struct Library(Option<Nvml>);

impl Library {
    /// Asks it for every GPU.
    pub(super) fn ask(&mut self) -> Answer {
        match &self.0 {
            Some(nvml) => look(nvml),
            None => match Nvml::init() {
                Ok(nvml) => look(self.0.insert(nvml)),
                Err(error) => refusal(&error),
            },
        }
    }
}

/// Returns why there is no library to ask.
fn refusal(error: &NvmlError) -> Answer {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            Answer::Absent("NVIDIA's management library is not installed".to_owned())
        }
        NvmlError::DriverNotLoaded => {
            Answer::Absent("the driver of NVIDIA is not loaded".to_owned())
        }
        error => Answer::Failed(error.to_string()),
    }
}

/// Describes all GPUs.
fn look(nvml: &Nvml) -> Answer {
    match nvml.device_count() {
        Ok(count) => Answer::Gpus((0..count).map(|index| gpu(nvml, index)).collect()),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Describes one GPU; its errors name what could not be asked.
fn gpu(nvml: &Nvml, index: u32) -> Gpu {
    let mut gpu = Gpu {
        index,
        ..Gpu::default()
    };
    let device = match nvml.device_by_index(index) {
        Ok(device) => device,
        Err(error) => {
            gpu.errors.push(error.to_string());
            return gpu;
        }
    };
    gpu.uuid = device.uuid().ok();
    gpu.name = device.name().ok();
    if let Ok(memory) = device.memory_info() {
        gpu.total_bytes = Some(memory.total);
        gpu.used_bytes = Some(memory.used);
    }
    gpu.is_partitioned = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    add_processes(&mut gpu, &device);
    if gpu.is_partitioned && gpu.processes.is_empty() {
        // Some drivers list the processes of an instance only when that instance is asked.
        for instance in 0..device.mig_device_count().unwrap_or(0) {
            if let Ok(instance) = device.mig_device_by_index(instance) {
                add_processes(&mut gpu, &instance);
            }
        }
    }
    gpu
}

fn add_processes(gpu: &mut Gpu, device: &Device<'_>) {
    let lists = [
        (Kind::Compute, compute(device)),
        (Kind::Graphics, graphics(device)),
    ];
    for (kind, list) in lists {
        match list {
            Ok(list) => gpu
                .processes
                .extend(list.iter().map(|process| of_driver(kind, process))),
            // The GPU has no graphics, or does not report its processes.
            Err(NvmlError::NotSupported) => {}
            Err(error) => gpu.errors.push(error.to_string()),
        }
    }
}

/// Lists the processes that compute. Drivers before 510 have the second version of the call alone.
fn compute(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match device.running_compute_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_compute_processes_v2(),
        other => other,
    }
}

/// Lists the processes that draw.
fn graphics(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match device.running_graphics_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_graphics_processes_v2(),
        other => other,
    }
}

fn of_driver(kind: Kind, process: &ProcessInfo) -> GpuProcess {
    GpuProcess {
        pid: process.pid,
        kind,
        bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        gpu_instance: process.gpu_instance_id,
    }
}

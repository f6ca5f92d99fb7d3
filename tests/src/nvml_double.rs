//! A shared library with the entry points of NVIDIA's management library that lifemon uses. What it
//! answers is in the file that `NVML_DOUBLE` names, read anew at every call, a word or a line each:
//!
//! ```text
//! hang                     every call sleeps until the process is killed
//! init 9                   nvmlInit returns this code
//! list 15                  the lists of processes return this code
//! open /dev/full           the process that has loaded it has this open from nvmlInit on
//! process 4200 1048576     a process that computes, and its bytes (-1: the driver does not say)
//! graphics 4201 4096       a process that draws
//! ```
//!
//! Beside that file it writes who has loaded it, and whether it was asked for processes.

// What is exported are the names that NVIDIA chose, called by lifemon alone.
#![expect(
    missing_docs,
    reason = "documented by the library that this stands for"
)]
#![expect(
    clippy::missing_safety_doc,
    reason = "as the library that this stands for"
)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::Path;
use std::time::Duration;

const SUCCESS: c_int = 0;
const INSUFFICIENT_SIZE: c_int = 7;
const NAME: &[u8] = b"Double 1000\0";
const UUID: &[u8] = b"GPU-double-0\0";
const VERSION: &[u8] = b"570.10\0";
const NO_INSTANCE: c_uint = c_uint::MAX;

#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
pub struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// Reads the lines of the file, after the hang that one of them may ask for.
fn lines() -> Vec<Vec<String>> {
    let path = std::env::var_os("NVML_DOUBLE").unwrap_or_default();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let lines: Vec<Vec<String>> = text.lines().map(words).collect();
    if lines.iter().any(|line| line[0] == "hang") {
        loop {
            std::thread::sleep(Duration::from_mins(1));
        }
    }
    lines
}

fn code(name: &str) -> c_int {
    let lines = lines();
    let line = lines.iter().find(|line| line[0] == name);
    line.map_or(SUCCESS, |line| line[1].parse().unwrap_or(-1))
}

/// Copies text with its zero.
///
/// # Safety
/// There is room for `length` bytes at `to`.
unsafe fn put(text: &[u8], to: *mut c_char, length: c_uint) -> c_int {
    if text.len() > length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller passes room for `length` bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len()) };
    SUCCESS
}

/// Fills a list of processes.
///
/// # Safety
/// `count` is a place that says for how many entries there is room at `infos`.
unsafe fn list(kind: &str, count: *mut c_uint, infos: *mut ProcessInfo) -> c_int {
    let failed = code("list");
    if failed != SUCCESS {
        return failed;
    }
    let lines = lines();
    let found: Vec<_> = lines.iter().filter(|line| line[0] == kind).collect();
    // SAFETY: the caller passes a count and room for so many entries.
    unsafe {
        let room = *count as usize;
        *count = found.len() as c_uint;
        if found.is_empty() {
            return SUCCESS;
        }
        if room < found.len() || infos.is_null() {
            return INSUFFICIENT_SIZE;
        }
        for (index, line) in found.iter().enumerate() {
            infos.add(index).write(ProcessInfo {
                pid: line[1].parse().unwrap_or(0),
                used: line[2].parse().unwrap_or(c_ulonglong::MAX),
                gpu_instance: NO_INSTANCE,
                compute_instance: NO_INSTANCE,
            });
        }
    }
    SUCCESS
}

/// Writes a file beside the answers.
fn note(extension: &str, contents: &[u8]) {
    let path = std::env::var_os("NVML_DOUBLE").unwrap_or_default();
    let _ = std::fs::write(Path::new(&path).with_extension(extension), contents);
}

/// Notes what the kernel says of the process that has loaded it.
// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    note("status", &status);
    let lines = lines();
    for line in lines.iter().filter(|line| line[0] == "open") {
        // As the library has the devices: until the process ends.
        std::mem::forget(std::fs::File::open(&line[1]));
    }
    code("init")
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> c_int {
    // SAFETY: passed on.
    unsafe { put(VERSION, to, length) }
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    // SAFETY: the caller passes a place.
    unsafe { *count = 1 };
    code("count")
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    _index: c_uint,
    device: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller passes a place; nobody looks behind the handle.
    unsafe { *device = std::ptr::without_provenance_mut(1) };
    code("device")
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    _device: *mut c_void,
    to: *mut c_char,
    length: c_uint,
) -> c_int {
    // SAFETY: passed on.
    unsafe { put(UUID, to, length) }
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    _device: *mut c_void,
    to: *mut c_char,
    length: c_uint,
) -> c_int {
    // SAFETY: passed on.
    unsafe { put(NAME, to, length) }
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    _device: *mut c_void,
    memory: *mut Memory,
) -> c_int {
    let whole = Memory {
        total: 80 << 30,
        free: 70 << 30,
        used: 10 << 30,
    };
    // SAFETY: the caller passes a place.
    unsafe { memory.write(whole) };
    SUCCESS
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    _device: *mut c_void,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> c_int {
    // SAFETY: passed on.
    let code = unsafe { list("process", count, infos) };
    if code == SUCCESS {
        note("asked", b"");
    }
    code
}

// SAFETY: the name is of NVIDIA's library, which is not loaded beside this stand-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    _device: *mut c_void,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> c_int {
    // SAFETY: passed on.
    unsafe { list("graphics", count, infos) }
}

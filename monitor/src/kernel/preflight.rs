//! Whether lifemon can work here, decided before anything is loaded: kernel, type information,
//! pid namespace, privileges, lockdown. Each refusal says what to do about it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::sys::text;
use crate::words;

/// Oldest kernel: BPF atomics that return a value, and the task iterator.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// The running kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

const LOCKDOWN_PATH: &str = "/sys/kernel/security/lockdown";

/// Inode of the initial pid namespace, `PROC_PID_INIT_INO` in the kernel.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// A reason why lifemon cannot work here, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The kernel is older than `OLDEST_KERNEL`.
    #[error("kernel {found} is too old: lifemon needs Linux 5.15 or newer; boot a newer kernel")]
    OldKernel {
        /// Release of the running kernel.
        found: String,
    },
    /// The kernel does not describe its types.
    #[error(
        "no {BTF_PATH}: this kernel was built without type information; use a kernel with \
         CONFIG_DEBUG_INFO_BTF=y (all large distributions ship one), and mount sysfs on /sys"
    )]
    NoBtf,
    /// The type information does not describe what is needed.
    #[error(
        "{BTF_PATH} is not usable: {0}; use the kernel's own file, of a kernel with \
        CONFIG_DEBUG_INFO_BTF=y"
    )]
    BadBtf(String),
    /// Capabilities are missing.
    #[error(
        "not permitted: {missing}; run as root (sudo lifemon ...), or grant CAP_BPF and CAP_PERFMON"
    )]
    NoPrivilege {
        /// The missing capabilities, as a sentence.
        missing: String,
    },
    /// The kernel lets only administrators open tracepoints, and this one's can be preempted.
    #[error(
        "not permitted to open a tracepoint: CAP_SYS_ADMIN is missing; \
         run as root (sudo lifemon ...), \
         or set kernel.perf_event_paranoid to 2, where CAP_BPF and CAP_PERFMON are enough"
    )]
    NoTracepoints,
    /// Lockdown forbids BPF programs to read kernel memory.
    #[error(
        "the kernel is locked down for confidentiality, so no program may read kernel memory; \
         boot with lockdown=integrity or lockdown=none"
    )]
    Lockdown,
    /// The process ids seen here are not those of the host.
    #[error(
        "this is not the initial pid namespace, so process ids would be those of a container; \
         run lifemon on the host, or with the host's pid namespace (hostPID: true, --pid=host)"
    )]
    PidNamespace,
}

/// Checks everything that can be checked without loading a program.
///
/// # Errors
/// The first [`Refusal`] that holds.
pub fn check() -> Result<(), Refusal> {
    check_kernel()?;
    check_btf()?;
    check_pid_namespace()?;
    check_privileges()?;
    check_lockdown()
}

/// Returns the release of the running kernel, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Checks that the kernel is new enough.
///
/// # Errors
/// [`Refusal::OldKernel`].
pub fn check_kernel() -> Result<(), Refusal> {
    let found = kernel_release();
    if parse_release(&found).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(Refusal::OldKernel { found });
    }
    Ok(())
}

/// Parses the major and minor version of a release like `6.1.0-40-cloud-amd64`.
#[must_use]
pub fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Checks that the kernel's type information is there.
///
/// # Errors
/// [`Refusal::NoBtf`].
pub fn check_btf() -> Result<(), Refusal> {
    if Path::new(BTF_PATH).is_file() {
        Ok(())
    } else {
        Err(Refusal::NoBtf)
    }
}

/// Checks that pids here are those of the host.
///
/// # Errors
/// [`Refusal::PidNamespace`].
pub fn check_pid_namespace() -> Result<(), Refusal> {
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != INITIAL_PID_NAMESPACE => Err(Refusal::PidNamespace),
        // Unreadable: decided by what follows.
        _ => Ok(()),
    }
}

/// Checks that the capabilities to load programs are there.
///
/// # Errors
/// [`Refusal::NoPrivilege`].
pub fn check_privileges() -> Result<(), Refusal> {
    let Some(effective) = effective_capabilities() else {
        return Ok(());
    };
    let has = |capability: u32| effective >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return Ok(());
    }
    let missing: Vec<_> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|&(capability, _)| !has(capability))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::NoPrivilege {
        missing: words::missing(&missing),
    })
}

/// Returns whether this process has a capability, by its number.
#[must_use]
pub fn has_capability(capability: u32) -> bool {
    effective_capabilities().is_some_and(|effective| effective >> capability & 1 == 1)
}

/// Returns the effective capabilities of this process, as bits; `None` when `/proc` does not say.
fn effective_capabilities() -> Option<u64> {
    let status = text::read("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Checks that lockdown lets programs read kernel memory.
///
/// # Errors
/// [`Refusal::Lockdown`].
pub fn check_lockdown() -> Result<(), Refusal> {
    match text::read(LOCKDOWN_PATH) {
        Ok(modes) if modes.contains("[confidentiality]") => Err(Refusal::Lockdown),
        // No lockdown in this kernel, or securityfs is not mounted: loading will tell.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_distributions_parse() {
        assert_eq!(parse_release("6.1.0-40-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.15.0"), Some((5, 15)));
        assert_eq!(parse_release("7.2-rc1"), Some((7, 2)));
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("weird"), None);
    }

    #[test]
    fn the_floor_is_5_15() {
        assert!((5, 10) < OLDEST_KERNEL);
        assert!((5, 15) >= OLDEST_KERNEL);
        assert!((6, 1) >= OLDEST_KERNEL);
    }
}

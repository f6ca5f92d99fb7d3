//! The mounts that this process sees.

use std::path::PathBuf;

use crate::sys::text;

/// Returns where a hierarchy of control groups is mounted: of this kind of file system, with this
/// option if it is not empty.
pub(super) fn cgroup(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = text::read("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, found, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let fits = found == kind && (option.is_empty() || options.split(',').any(|o| o == option));
        fits.then(|| PathBuf::from(path))
    })
}

//! Namespaces by their descriptors: the one above, and the user who has made one
//! (<https://man7.org/linux/man-pages/man2/ioctl_nsfs.2.html>).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use super::check;

/// Opens the user namespace that a user namespace was made in.
///
/// # Errors
/// `EPERM` where that one is outside of the user namespace of this process.
pub(crate) fn parent(namespace: &impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the request has no argument.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_PARENT) };
    let descriptor = check(result.into())?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns the effective user that a user namespace was made by.
///
/// # Errors
/// When the descriptor is not one of a user namespace.
pub(crate) fn owner(user_namespace: &impl AsFd) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    let descriptor = user_namespace.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one uid, which lives until the call returns.
    let result = unsafe { libc::ioctl(descriptor, libc::NS_GET_OWNER_UID, &raw mut uid) };
    check(result.into()).map(|_| uid)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_a_user_namespace_has_an_owner_of_its_own() {
        let open = |kind| File::open(format!("/proc/self/ns/{kind}")).unwrap();
        let own = open("user");
        assert!(owner(&own).is_ok());
        let error = owner(&open("net")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        // This process is in it: what is above is not for it to open.
        let error = parent(&own).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}

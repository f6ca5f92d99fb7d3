//! Who is at the other end of a Unix socket, by the kernel's word: as it was when it connected.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};

/// Groups of a user at most, as the kernel limits them.
const GROUPS_MAX: usize = 65_536;

/// The credentials of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its pid in the pid namespace of this process; 0 where it has none there.
    pub(crate) pid: u32,
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group.
    pub(crate) gid: u32,
    /// Its other groups.
    pub(crate) groups: Vec<u32>,
}

/// Returns the credentials of the peer.
///
/// # Errors
/// When the socket is no connected Unix socket.
pub(crate) fn credentials(socket: &impl AsFd) -> io::Result<Credentials> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Credentials {
        pid: peer.pid().cast_unsigned(),
        uid: peer.uid(),
        gid: peer.gid(),
        groups: groups(socket)?,
    })
}

/// Returns a descriptor of the process that has connected; `None` on kernels that give none (before
/// 6.5).
///
/// # Errors
/// When the process is gone, or no descriptor is left.
pub(crate) fn pidfd(socket: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    match getsockopt(socket, sockopt::PeerPidfd) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(nix::errno::Errno::ENOPROTOOPT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * 4).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `bytes` bytes, which the vector has, and the length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let error = io::Error::last_os_error();
        if result == 0 {
            groups.truncate(bytes as usize / 4);
            return Ok(groups);
        }
        let is_short = error.raw_os_error() == Some(libc::ERANGE) && groups.len() < GROUPS_MAX;
        if !is_short {
            return Err(error);
        }
        groups.resize(GROUPS_MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = credentials(&one).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        if let Some(pidfd) = pidfd(&one).unwrap() {
            assert_eq!(
                crate::proc::pid_of_pidfd(pidfd.as_fd()),
                Some(std::process::id())
            );
        }
    }
}

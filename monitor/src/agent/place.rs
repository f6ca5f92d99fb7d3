//! The place of the agent: the directory of its sockets, its lock, and its state. One agent at a
//! time has it; what one that was killed has left is taken over.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

/// The place, taken. Its lock is held for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes a directory, which it makes if need be.
    ///
    /// # Errors
    /// When the directory is not root's alone to change, or another agent has it.
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        let shown = directory.display();
        make(directory, 0o755).with_context(|| format!("cannot make {shown}"))?;
        check(directory)?;
        let state = directory.join("state");
        make(&state, 0o700).with_context(|| format!("cannot make {}", state.display()))?;
        check(&state)?;
        fs::set_permissions(&state, Permissions::from_mode(0o700))?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(state.join("lock"))
            .with_context(|| format!("cannot write in {}", state.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another agent uses {shown}; end that one first (`systemctl stop lifemon-agent`), \
                 or name another directory"
            );
        }
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Returns the directory of what is kept.
    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Returns the path of a socket.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Listens on a socket that everybody may connect to. One that is there already is of an agent
    /// that has ended: the lock says so.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(super) fn listen(&self, name: &str) -> anyhow::Result<UnixListener> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Tells systemd, where that has started this process, that it is ready.
    pub(super) fn say_ready() {
        if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
            && let Ok(socket) = UnixDatagram::unbound()
        {
            let _ = socket.send_to(b"READY=1\n", Path::new(&path));
        }
    }

    /// Removes the sockets. What is kept stays for the next agent.
    pub(super) fn leave(self) {
        for name in [super::SOCKET, "handle.sock"] {
            let _ = fs::remove_file(self.path(name));
        }
    }
}

fn make(directory: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Checks that nobody but root can change what is in a directory.
fn check(directory: &Path) -> anyhow::Result<()> {
    let shown = directory.display();
    let found = fs::symlink_metadata(directory).with_context(|| format!("cannot read {shown}"))?;
    let own = nix::unistd::geteuid().as_raw();
    if !found.is_dir() {
        bail!("{shown} is no directory; remove it, or name another one");
    }
    if found.uid() != own || found.mode() & 0o022 != 0 {
        bail!("{shown} can be changed by others than root: chown root and chmod 755 it");
    }
    Ok(())
}

//! `lifemon helper`: the process beside a server that has started its workers by itself. Not for
//! people: the Python package starts it, with a socket as standard input.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::{Code, Usage};
use crate::manager::serve_helper;

/// Arguments of `helper`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  The Python package lifemon starts this, with a socket as standard input.")]
pub struct Args {
    /// Know the trees by snapshots of /proc alone
    #[arg(long)]
    without_ebpf: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Code> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    if socket.peer_addr().is_err() {
        let what = "standard input is no socket: this command is for lifemon's Python package";
        return Err(Usage(what.to_owned()).into());
    }
    serve_helper(socket, !args.without_ebpf)?;
    Ok(Code::Done)
}

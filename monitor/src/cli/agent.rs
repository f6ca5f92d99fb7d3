//! `lifemon agent`: the node agent, and the hidden commands of the processes that it starts.

use std::os::unix::process::parent_id;
use std::path::PathBuf;

use super::Code;
use crate::agent::{self, Options, deputy, front};

/// Arguments of `agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sudo lifemon agent &
  curl --unix-socket /run/lifemon/lifemon.sock http://lifemon/v1/tree/self

Root of the host sees and ends all; members of lifemon-read see all, those of lifemon-kill end all;
everybody else sees and ends what is their own, a container what is in it.")]
pub struct Args {
    /// Directory of the sockets and the state
    #[arg(long, value_name = "DIRECTORY", default_value = agent::RUNTIME_DIR, hide = true)]
    runtime_dir: PathBuf,
    /// Program to start as the front
    #[arg(long, value_name = "PROGRAM", default_value = crate::proc::OWN_PROGRAM, hide = true)]
    front: PathBuf,
    /// Group whose members see everything
    #[arg(long, value_name = "GROUP", default_value = "lifemon-read")]
    read_group: String,
    /// Group whose members see and end everything
    #[arg(long, value_name = "GROUP", default_value = "lifemon-kill")]
    kill_group: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Code> {
    agent::run(&Options {
        runtime_dir: args.runtime_dir.clone(),
        front: args.front.clone(),
        readers: args.read_group.clone(),
        killers: args.kill_group.clone(),
    })?;
    Ok(Code::Done)
}

/// Arguments of the front, which the agent starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  started by `lifemon agent`")]
pub struct FrontArgs {
    /// Descriptor of the socket to the core
    calls: i32,
    /// Descriptor of the socket that connections come over
    connections: i32,
}

pub(super) fn front(args: &FrontArgs) -> anyhow::Result<Code> {
    front::run(parent_id(), args.calls, args.connections)?;
    Ok(Code::Done)
}

/// Arguments of a deputy, which the agent starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  started by `lifemon agent`")]
pub struct DeputyArgs {
    /// User
    uid: u32,
    /// Group
    gid: u32,
    /// Descriptor of the socket to the core
    socket: i32,
}

pub(super) fn deputy(args: &DeputyArgs) -> anyhow::Result<Code> {
    deputy::run(args.uid, args.gid, args.socket)?;
    Ok(Code::Done)
}

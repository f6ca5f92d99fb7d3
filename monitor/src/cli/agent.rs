//! `lifemon agent`: the node agent, and how the processes begin that it starts.

use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process::ExitCode;

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

/// Becomes a front or a deputy if the agent has started this process to be one; its exit code then.
/// These words are not for people, and the parser of all others would be the larger part of what a
/// front has in memory.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let command = words.next()?;
    let numbers: Option<Vec<u32>> = words.map(|word| word.to_str()?.parse().ok()).collect();
    let fd = u32::cast_signed;
    let ended = match (command.to_str()?, numbers?.as_slice()) {
        (front::COMMAND, &[calls, connections]) => {
            super::start_logging(0);
            front::run(parent_id(), fd(calls), fd(connections))
        }
        (deputy::COMMAND, &[uid, gid, socket]) => deputy::run(uid, gid, fd(socket)),
        _ => return None,
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&error.into()),
    })
}

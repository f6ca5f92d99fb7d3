//! The guardian as a program of its own: how a process is asked to be one, and how it begins. It
//! runs in `serve`.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::message::{Channel, Spec};
use super::serve::serve;
use super::spawn::{Group, Place};
use crate::sys::descriptor::keep_on_exec;
use crate::sys::signals::Signals;

/// By this first argument the program is asked to be a guardian.
const ASKED: &str = "lifemon-guardian";

/// The first message to an executed guardian.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Brief {
    /// The commands.
    pub(crate) specs: Vec<Spec>,
}

/// Returns the words that make this program a guardian on this descriptor.
pub(crate) fn words(channel: i32) -> (&'static str, String) {
    (ASKED, channel.to_string())
}

/// Makes this process a guardian if it was started to be one, and does not return then. The first
/// line of `main` of every program that uses [`crate::manager::ProcessManager`]: the guardian is
/// the same program, executed anew, so that no copy of a threaded program runs on.
pub fn run_if_asked() {
    let mut words = std::env::args_os();
    if words.next().is_none_or(|word| word != ASKED) {
        return;
    }
    let fd = words.next().and_then(|word| word.to_str()?.parse().ok());
    let code = match fd.map(executed) {
        Some(Ok(())) => 0,
        Some(Err(error)) => {
            eprintln!("lifemon guardian: {error}");
            1
        }
        None => 2,
    };
    std::process::exit(code);
}

fn executed(fd: i32) -> io::Result<()> {
    keep_on_exec(fd, false)?;
    // SAFETY: the parent has made this descriptor for us, and nobody else here uses it.
    let mut channel = Channel::new(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    let (_, before) = Signals::block()?;
    let brief = loop {
        let (mut briefs, is_open) = channel.receive::<Brief>()?;
        match briefs.pop() {
            Some(brief) => break brief,
            None if is_open => {}
            None => return Ok(()),
        }
    };
    for fd in brief.specs.iter().filter_map(|spec| spec.inherited) {
        keep_on_exec(fd, false)?;
    }
    let place = Place {
        group: Group::Own,
        before,
    };
    serve(channel, &brief.specs, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_no_guardian() {
        run_if_asked();
        assert_eq!(words(7), (ASKED, "7".to_owned()));
    }
}

//! Becoming root for one program: directly when we are, through sudo when not.
//! The build never runs through here, so that no file in target/ belongs to root.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::toolchain::on_path;

/// How root can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// We are root.
    Root,
    /// We are not, and sudo is there.
    Sudo,
    /// Neither.
    None,
}

impl Privilege {
    /// Looks at the effective user and at `PATH`.
    #[must_use]
    pub fn detect() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::Root
        } else if on_path("sudo").is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }
}

/// Returns a command for `program` as root, with `variables` and those of the caller that concern
/// lifemon: sudo drops all others.
///
/// # Errors
/// When there is no way to be root.
pub fn as_root(program: &Path, variables: &[(&str, &OsStr)]) -> Result<Command> {
    as_root_by(Privilege::detect(), program, variables)
}

fn as_root_by(
    privilege: Privilege,
    program: &Path,
    variables: &[(&str, &OsStr)],
) -> Result<Command> {
    match privilege {
        Privilege::Root => {
            let mut command = Command::new(program);
            command.envs(variables.iter().copied());
            Ok(command)
        }
        Privilege::Sudo => {
            let mut command = Command::new("sudo");
            command.args(["--", "env"]);
            for (name, value) in env::vars_os().filter(|(name, _)| passes_sudo(name)) {
                command.arg(assignment(&name, &value));
            }
            for (name, value) in variables {
                command.arg(assignment(OsStr::new(name), value));
            }
            command.arg(program);
            Ok(command)
        }
        Privilege::None => bail!(
            "{} needs root, and there is no sudo: run this command as root",
            program.file_name().unwrap_or(program.as_os_str()).display()
        ),
    }
}

fn passes_sudo(name: &OsStr) -> bool {
    const NAMES: [&str; 4] = ["NO_COLOR", "PATH", "RUST_BACKTRACE", "RUST_LOG"];
    name.to_str()
        .is_some_and(|name| NAMES.contains(&name) || name.starts_with("LIFEMON_"))
}

fn assignment(name: &OsStr, value: &OsStr) -> OsString {
    let mut text = name.to_owned();
    text.push("=");
    text.push(value);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &Command) -> Vec<&str> {
        command.get_args().filter_map(OsStr::to_str).collect()
    }

    #[test]
    fn sudo_is_told_the_variables_by_arguments() -> Result<()> {
        let variables = [("LIFEMON_BIN", OsStr::new("/bin/lifemon"))];
        let command = as_root_by(Privilege::Sudo, Path::new("/bin/e2e"), &variables)?;
        assert_eq!(command.get_program(), "sudo");
        let arguments = arguments(&command);
        assert_eq!(arguments[..2], ["--", "env"]);
        assert!(arguments.ends_with(&["LIFEMON_BIN=/bin/lifemon", "/bin/e2e"]));
        Ok(())
    }

    #[test]
    fn root_needs_no_sudo() -> Result<()> {
        let command = as_root_by(Privilege::Root, Path::new("/bin/e2e"), &[])?;
        assert_eq!(command.get_program(), "/bin/e2e");
        assert!(arguments(&command).is_empty());
        Ok(())
    }

    #[test]
    fn without_either_the_program_and_the_remedy_are_named() {
        let error = as_root_by(Privilege::None, Path::new("/bin/e2e"), &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("e2e needs root"), "{text}");
        assert!(text.ends_with("run this command as root"), "{text}");
    }

    #[test]
    fn only_what_concerns_lifemon_passes_sudo() {
        assert!(passes_sudo(OsStr::new("LIFEMON_BIN")));
        assert!(passes_sudo(OsStr::new("NO_COLOR")));
        assert!(!passes_sudo(OsStr::new("LD_PRELOAD")));
    }
}

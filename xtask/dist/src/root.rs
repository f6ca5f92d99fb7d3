//! Programs in a root directory of their own. They share the host's processes, which lifemon needs;
//! every mount, and the BPF file system where a tracker would be, goes with the program.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use lifemon_tools::command::{output, shown};
use lifemon_tools::privilege::as_root;

/// How long a program may run, in seconds.
const LIMIT_S: &str = "300";

/// Mounts in the namespace of the program alone, and becomes it.
const ENTER: &str = "set -e; root=$1; shift
mkdir -p $root/proc $root/sys $root/dev $root/run $root/tmp
mount --rbind /proc $root/proc
mount --rbind /sys $root/sys
mount -t bpf bpf $root/sys/fs/bpf
mount --rbind /dev $root/dev
mount -t tmpfs tmpfs $root/run
exec chroot $root \"$@\"";

/// A root directory, or none: then programs run on this system as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root<'a>(pub(crate) Option<&'a Path>);

impl Root<'_> {
    /// Returns a command there, as root, that ends in time.
    fn command(self, program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = as_root(Path::new("timeout"), &[])?;
        command.arg(LIMIT_S);
        if let Some(root) = self.0 {
            command.args(["unshare", "--mount", "--propagation", "private"]);
            command.args(["sh", "-c", ENTER, "sh"]).arg(root);
        }
        command.arg(program).args(arguments);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a program, and returns what it prints.
    pub(crate) fn run(self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program, arguments)?;
        let ended = command
            .output()
            .with_context(|| format!("cannot start `{}`", shown(&command)))?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(
            ended.status.success(),
            "{program} {arguments:?} failed ({}):\n{text}{errors}",
            ended.status
        );
        Ok(text + &errors)
    }

    /// Tries lifemon: doctor finds nothing wrong, and attach sees a process through to its end.
    /// `lifemon` are the words that begin its command line.
    pub(crate) fn try_lifemon(self, lifemon: &[&str]) -> Result<()> {
        let (program, first) = lifemon.split_first().context("a program")?;
        let with = |words: &[&str]| self.run(program, &[first, words].concat());
        let version = with(&["--version"])?;
        with(&["doctor"])?;
        let mut watched = Watched::start()?;
        let seen = with(&["attach", &watched.0.id().to_string()]);
        watched.0.wait()?;
        let seen = seen?;
        ensure!(
            seen.contains("exits: 1 exited"),
            "attach saw no end of the process:\n{seen}"
        );
        eprintln!("ok: {}: doctor, attach", version.trim());
        Ok(())
    }
}

/// A process that ends by itself soon.
struct Watched(Child);

impl Watched {
    fn start() -> Result<Self> {
        Ok(Self(Command::new("sleep").arg("4").spawn()?))
    }
}

/// Returns what a program of this machine prints, or says that it has to be installed.
pub(crate) fn said(program: &str, arguments: &[&str]) -> Result<String> {
    output(Command::new(program).args(arguments))
        .with_context(|| format!("`{program} {}` failed", arguments.join(" ")))
}

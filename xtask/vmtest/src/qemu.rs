//! One guest in QEMU, emulated: from its start to its end or its deadline. Its console goes line by
//! line to a file and to the caller.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::architecture::Architecture;

/// Emulated in one thread, in turns. In a thread for each, QEMU 7.2 lets one processor run code that
/// another is changing: Linux 7.2 died of that in two starts out of five, once before anything of
/// ours ran.
const ACCELERATOR: &str = "tcg,thread=single";

/// The guest has no swap, and one test fills memory up to a limit of its own.
const MEMORY: &str = "2G";

/// Errors only on the console, and a panic ends the guest. Mitigations cost most of
/// the time in an emulated processor and change nothing that is tested, and so do checks of the
/// kernel's own memory.
const KERNEL_ARGUMENTS: &str = "loglevel=3 panic=-1 mitigations=off nokaslr \
                                init_on_alloc=0 kfence.sample_interval=0 audit=0 \
                                tsc=reliable no_timer_check";

/// How often the deadline is looked at.
const TICK: Duration = Duration::from_millis(50);

/// What is booted, and for how long at most.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// Its processor.
    pub(crate) architecture: Architecture,
    /// How many there are of them.
    pub(crate) processors: u32,
    /// The kernel.
    pub(crate) image: &'a Path,
    /// Its file system.
    pub(crate) initramfs: &'a Path,
    /// Where its console is kept.
    pub(crate) console: &'a Path,
    /// When it is ended.
    pub(crate) deadline: Duration,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Itself,
    /// It was ended at its deadline.
    Deadline,
}

/// Boots a guest and waits for its end. Each line of its console goes to `each_line` at once.
pub(crate) fn boot(machine: &Machine<'_>, each_line: impl FnMut(&str) + Send) -> Result<End> {
    let file = File::create(machine.console)
        .with_context(|| format!("cannot write {}", machine.console.display()))?;
    let mut command = command(machine);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // What the emulator complains about belongs to the console.
    command.stderr(file.try_clone()?);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", machine.architecture.emulator()))?;
    let mut guest = Guest(child);
    let stdout = guest.0.stdout.take().context("the console is a pipe")?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || keep(stdout, file, each_line));
        let end = guest.wait(machine.deadline);
        // Its end closes the pipe.
        drop(guest);
        match reader.join() {
            Ok(kept) => kept.context("cannot keep the console")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        end
    })
}

fn command(machine: &Machine<'_>) -> Command {
    let architecture = machine.architecture;
    let mut command = Command::new(architecture.emulator());
    command.args(architecture.machine());
    let words = [
        "-accel",
        ACCELERATOR,
        "-m",
        MEMORY,
        "-nodefaults -no-user-config -no-reboot -display none -monitor none -serial stdio",
    ];
    command.args(words.iter().flat_map(|words| words.split(' ')));
    command.arg("-smp").arg(machine.processors.to_string());
    command.arg("-kernel").arg(machine.image);
    command.arg("-initrd").arg(machine.initramfs);
    let console = architecture.console();
    command.arg("-append");
    command.arg(format!("console={console} {KERNEL_ARGUMENTS}"));
    let with_us = || Ok(set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: between fork and exec it makes one system call that touches no memory.
    unsafe { command.pre_exec(with_us) };
    command
}

/// Ends the emulator when dropped.
struct Guest(Child);

impl Guest {
    fn wait(&mut self, deadline: Duration) -> Result<End> {
        let start = Instant::now();
        while start.elapsed() < deadline {
            if self.0.try_wait()?.is_some() {
                return Ok(End::Itself);
            }
            thread::sleep(TICK);
        }
        Ok(End::Deadline)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what they are for.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn keep(
    stdout: ChildStdout,
    mut file: File,
    mut each_line: impl FnMut(&str),
) -> std::io::Result<()> {
    let start = Instant::now();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        // When it came says where a guest that hung did so.
        writeln!(file, "{:>6.1} {line}", start.elapsed().as_secs_f64())?;
        each_line(line);
    }
    Ok(())
}

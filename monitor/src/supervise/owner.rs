//! The user's side of `lifemon run`: signals in, the command's end out, job control between. What
//! the command leaves is the nursery's; this process takes over should the nursery be killed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use super::ending::{Ending, Rest};
use super::message::{Channel, Notice, Order, Request, Spec};
use super::nursery::fork_nursery;
use super::report;
use super::spawn::Place;
use super::terminal::Terminal;
use crate::ProcessId;
use crate::sys::child::{self, become_subreaper};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::poll::wait_for;
use crate::sys::signals::{Mask, Signals, is_forwarded, stop_self};

/// What to run, and what becomes of what it leaves.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// Sent first to what is left behind.
    pub signal: i32,
    /// How long to wait after that.
    pub grace: Duration,
    /// Leave it alive.
    pub keep_orphans: bool,
    /// Where to write a report.
    pub json: Option<PathBuf>,
}

/// How a command ended, and what became of what it left.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The command's process.
    pub command: ProcessId,
    /// Its status as `wait(2)` gives it.
    pub status: i32,
    /// What it left; `None` where the nursery was killed before it could say.
    pub rest: Rest,
}

impl Ended {
    /// The exit code: the command's own, or 128 and the signal that ended it.
    #[must_use]
    pub fn code(&self) -> u8 {
        let code = if libc::WIFSIGNALED(self.status) {
            128 + libc::WTERMSIG(self.status)
        } else {
            libc::WEXITSTATUS(self.status)
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// Why a command was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command does not exist, or may not run.
    #[error("cannot run {word}: {error}")]
    NotStarted {
        /// The command.
        word: String,
        /// Why.
        error: io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report to {path}: {error}")]
    Report {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Something that this process needs failed.
    #[error("cannot supervise the command: {0}")]
    Failed(#[from] io::Error),
}

impl RunError {
    /// The exit code, as `env` and `timeout` have it.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NotStarted { error, .. } if error.raw_os_error() == Some(libc::ENOENT) => 127,
            Self::NotStarted { .. } => 126,
            Self::Report { .. } | Self::Failed(_) => 125,
        }
    }
}

/// Runs a command to its end, and ends what it leaves. For a process with one thread.
///
/// # Errors
/// [`RunError`].
pub fn run(options: &RunOptions) -> Result<Ended, RunError> {
    // Before anything runs: who asks for a report gets it, or nothing happens.
    let json = options.json.as_ref().map(|path| {
        File::create(path).map_err(|error| RunError::Report {
            path: path.display().to_string(),
            error,
        })
    });
    let json = json.transpose()?;
    let (signals, before) = Signals::block()?;
    become_subreaper()?;
    let terminal = Terminal::look();
    let spec = Spec {
        words: options.words.clone(),
        ..Spec::default()
    };
    let place = Place {
        group: terminal.group(),
        before,
    };
    let (nursery, channel) = fork_nursery(&spec, place)?;
    let mut owner = Owner {
        options,
        signals,
        channel: Some(channel),
        terminal,
        nursery,
        command: None,
        status: None,
        failed: None,
        rest: None,
        ending: None,
    };
    owner.follow()?;
    owner.terminal.take_back();
    let ended = owner.result()?;
    report::say(options, &ended);
    if let (Some(file), Some(path)) = (json, &options.json) {
        report::write(options, &ended, file).map_err(|error| RunError::Report {
            path: path.display().to_string(),
            error,
        })?;
    }
    Ok(ended)
}

struct Owner<'a> {
    options: &'a RunOptions,
    signals: Signals,
    /// `None` once the nursery is gone.
    channel: Option<Channel>,
    terminal: Terminal,
    nursery: u32,
    command: Option<ProcessId>,
    status: Option<i32>,
    failed: Option<i32>,
    rest: Option<Rest>,
    /// This process's own, after the nursery was killed.
    ending: Option<Ending>,
}

impl Owner<'_> {
    /// Until the command is dead and what it left is dealt with.
    fn follow(&mut self) -> io::Result<()> {
        while !self.is_over() {
            let ending = self.ending.as_ref();
            let sources = [
                Some(self.signals.fd()),
                self.channel
                    .as_ref()
                    .map(|channel| channel.stream().as_fd()),
                ending.and_then(Ending::killer_fd),
            ];
            let [by_signal, by_nursery, by_killer] = wait_for(sources, ending.map(Ending::wait))?;
            if by_killer && let Some(ending) = &mut self.ending {
                ending.read_killer();
            }
            if by_nursery {
                self.hear();
            }
            if by_signal {
                for signal in self.signals.read()? {
                    self.take(signal.number, signal.by_kernel);
                }
            }
            self.reap();
            self.go_on_with_ending();
        }
        Ok(())
    }

    fn go_on_with_ending(&mut self) {
        // The command dies with the nursery, a little later: what is kept is what it leaves.
        let is_dead = self.command.is_none() || self.status.is_some();
        if (is_dead || !self.options.keep_orphans)
            && let Some(rest) = self.ending.as_mut().and_then(Ending::step)
        {
            self.rest = Some(rest);
        }
    }

    fn is_over(&self) -> bool {
        let nursery_is_gone = self.channel.is_none();
        let is_settled = self.failed.is_some() || self.rest.is_some();
        nursery_is_gone && is_settled
    }

    fn send(&mut self, request: &Request) {
        if let Some(channel) = &mut self.channel {
            // A nursery that does not hear is dead, which the next wait tells.
            let _ = channel.send(request);
        }
    }

    fn hear(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let (notices, is_open) = channel.receive::<Notice>().unwrap_or_default();
        for notice in notices {
            match notice {
                Notice::Started { pid, start_ns, .. } => {
                    self.command = Some(ProcessId::new(pid, start_ns));
                }
                Notice::Failed { errno, .. } => {
                    self.failed = Some(errno);
                    self.end();
                }
                Notice::Stopped { signal, .. } => self.stop(signal),
                Notice::Died { status, .. } => {
                    self.status = Some(status);
                    self.terminal.take_back();
                    self.end();
                }
                Notice::Ended(rest) => self.rest = Some(rest),
                Notice::Killed { .. } => {}
            }
        }
        if !is_open {
            self.channel = None;
            self.bury_nursery();
        }
    }

    fn end(&mut self) {
        let order = Order {
            signal: Some(self.options.signal),
            grace: self.options.grace,
            keep: self.options.keep_orphans,
        };
        self.send(&Request::End(order));
    }

    /// Its end of the channel is closed. Unless it has done its work, this process does it: what was
    /// below the nursery is below this one now.
    fn bury_nursery(&mut self) {
        child::wait_for_end(self.nursery);
        if self.rest.is_none() && self.failed.is_none() {
            raise_descriptor_limit();
            let mut ending = Ending::begin(Order {
                keep: self.options.keep_orphans,
                ..Order::default()
            });
            ending.hurry();
            self.ending = Some(ending);
        }
    }

    /// A signal for this process.
    fn take(&mut self, signal: i32, by_kernel: bool) {
        // What the terminal sends to the whole group has reached the command already.
        if !is_forwarded(signal) || (by_kernel && self.terminal.is_shared()) {
            return;
        }
        if self.status.is_some() {
            // The command is dead: who asks again does not want to wait for the grace.
            if matches!(
                signal,
                libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP
            ) {
                self.send(&Request::Hurry);
            }
            return;
        }
        let is_continue = signal == libc::SIGCONT;
        if is_continue && let Some(command) = self.command {
            self.terminal.lend(command.pid);
        }
        self.send(&Request::Signal {
            worker: 0,
            signal,
            group: is_continue,
        });
    }

    /// The command was stopped: so is the job, which is this process to whoever started it.
    fn stop(&mut self, signal: i32) {
        // SIGSTOP was for the command alone: who sent it continues it.
        if !matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            return;
        }
        let was_lent = self.terminal.is_lent();
        self.terminal.stopped();
        if !stop_self(signal, Mask::ALL) && was_lent {
            // Nobody could continue the job: it goes on, as the kernel would have it.
            if let Some(command) = self.command {
                self.terminal.lend(command.pid);
            }
            self.send(&Request::Signal {
                worker: 0,
                signal: libc::SIGCONT,
                group: true,
            });
        }
    }

    fn reap(&mut self) {
        while let Some((pid, status)) = child::wait_any() {
            if libc::WIFSTOPPED(status) {
                continue;
            }
            if self.command.is_some_and(|command| command.pid == pid) {
                self.status.get_or_insert(status);
            }
            if let Some(ending) = &mut self.ending {
                ending.reaped(pid, status);
            }
        }
    }

    fn result(&mut self) -> Result<Ended, RunError> {
        if let Some(errno) = self.failed {
            let word = self.options.words.first();
            return Err(RunError::NotStarted {
                word: word.map_or_else(String::new, |word| word.display().to_string()),
                error: io::Error::from_raw_os_error(errno),
            });
        }
        match (self.command, self.status, self.rest.take()) {
            (Some(command), Some(status), Some(rest)) => Ok(Ended {
                command,
                status,
                rest,
            }),
            _ => Err(RunError::Failed(io::Error::other(
                "its parent was killed before it had started",
            ))),
        }
    }
}

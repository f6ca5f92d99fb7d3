//! The user's side of `lifemon run`: signals in, the command's end out, job control between. What
//! the command leaves is the guardian's; this process takes over should the guardian be killed.

use std::io;
use std::os::fd::AsFd as _;

use super::guardian::fork_guardian;
use super::message::{Channel, Notice, Request, Spec};
use super::options::{Ended, RunError, RunOptions};
use super::spawn::Place;
use super::terminal::Terminal;
use crate::ProcessId;
use crate::kill::ending::Ending;
use crate::kill::outcome::{Order, Rest};
use crate::kill::walk;
use crate::process::{Death, may_be_same_process};
use crate::sys::child::{self, become_subreaper};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::poll::wait_for;
use crate::sys::signals::{Mask, Signals, is_forwarded, stop_self};

/// Runs a command to its end, and ends what it leaves. For a process with one thread: it forks, and
/// takes the signals of the process for as long as the command runs.
///
/// ```no_run
/// use lifemon::{RunOptions, run};
///
/// # fn main() -> Result<(), lifemon::RunError> {
/// let ended = run(&RunOptions::new("make").arg("test"))?;
/// println!("{} left behind and killed", ended.rest.killed.len());
/// std::process::exit(ended.code().into());
/// # }
/// ```
///
/// # Errors
/// [`RunError`].
pub fn run(options: &RunOptions) -> Result<Ended, RunError> {
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
    let (guardian, channel) = fork_guardian(&spec, place)?;
    let mut owner = Owner {
        options,
        signals,
        channel: Some(channel),
        terminal,
        guardian,
        command: None,
        death: None,
        failed: None,
        rest: None,
        ending: None,
    };
    owner.follow()?;
    owner.terminal.take_back();
    owner.result()
}

struct Owner<'a> {
    options: &'a RunOptions,
    signals: Signals,
    /// `None` once the guardian is gone.
    channel: Option<Channel>,
    terminal: Terminal,
    guardian: u32,
    command: Option<ProcessId>,
    death: Option<Death>,
    failed: Option<i32>,
    rest: Option<Rest>,
    /// This process's own, after the guardian was killed.
    ending: Option<Ending>,
}

impl Owner<'_> {
    /// Follows the command until it is dead and what it left is dealt with.
    fn follow(&mut self) -> io::Result<()> {
        while !self.has_ended() {
            let ending = self.ending.as_ref();
            let sources = [
                Some(self.signals.fd()),
                self.channel
                    .as_ref()
                    .map(|channel| channel.stream().as_fd()),
                ending.and_then(Ending::killer_fd),
            ];
            let [by_signal, by_guardian, by_killer] = wait_for(sources, ending.map(Ending::wait))?;
            if by_killer && let Some(ending) = &mut self.ending {
                ending.read_killer();
            }
            if by_guardian {
                self.receive();
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
        // The command dies with the guardian, a little later: what is kept is what it leaves.
        let is_dead = self.command.is_none() || self.death.is_some();
        if (is_dead || !self.options.keep_orphans)
            && let Some(rest) = self.ending.as_mut().and_then(Ending::step)
        {
            self.rest = Some(rest);
        }
    }

    fn has_ended(&self) -> bool {
        let guardian_is_gone = self.channel.is_none();
        let is_settled = self.failed.is_some() || self.rest.is_some();
        guardian_is_gone && is_settled
    }

    fn send(&mut self, request: &Request) {
        if let Some(channel) = &mut self.channel {
            // A guardian that does not take it is dead, which the next wait shows.
            let _ = channel.send(request);
        }
    }

    fn receive(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let (notices, is_open) = channel.receive::<Notice>().unwrap_or_default();
        for notice in notices {
            match notice {
                Notice::Started { id, .. } => self.command = Some(id),
                Notice::Failed { errno, .. } => {
                    self.failed = Some(errno);
                    self.end();
                }
                Notice::Stopped { signal, .. } => self.stop(signal),
                Notice::Died { death, .. } => {
                    self.death = Some(death);
                    self.terminal.take_back();
                    self.end();
                }
                Notice::Ended(rest) => self.rest = Some(rest),
                Notice::Killed { .. } => {}
            }
        }
        if !is_open {
            self.channel = None;
            self.bury_guardian();
        }
    }

    fn end(&mut self) {
        let order = Order {
            signal: Some(self.options.signal.number()),
            grace: self.options.grace,
            keep: self.options.keep_orphans,
        };
        self.send(&Request::End(order));
    }

    /// Takes over when its end of the channel is closed, unless it has done its work: what was
    /// below the guardian is below this one now.
    fn bury_guardian(&mut self) {
        child::wait_for_end(self.guardian);
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

    /// Takes a signal for this process.
    fn take(&mut self, signal: i32, by_kernel: bool) {
        // What the terminal sends to the whole group has reached the command already.
        if !is_forwarded(signal) || (by_kernel && self.terminal.is_shared()) {
            return;
        }
        if self.death.is_some() {
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

    /// Stops the job with the command, which is this process to whoever started it.
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
        while let Some(reaped) = walk::reap() {
            let Some(death) = reaped.death() else {
                continue;
            };
            // A command that has changed its user can be hidden by now, or have been hidden before.
            if let Some(command) = self.command
                && may_be_same_process(command, reaped.id)
            {
                self.death.get_or_insert(death);
            }
            if let Some(ending) = &mut self.ending {
                ending.reaped(&reaped);
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
        match (self.command, self.death.take(), self.rest.take()) {
            (Some(command), Some(death), Some(rest)) => Ok(Ended {
                command,
                death,
                rest,
            }),
            _ => Err(RunError::Failed(io::Error::other(
                "its parent was killed before it had started",
            ))),
        }
    }
}

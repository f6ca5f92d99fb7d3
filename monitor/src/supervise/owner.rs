//! The user's side of `lifemon run`: signals in, the command's end out, job control between. What
//! the command leaves is the guardian's; this process takes over should the guardian be killed.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::guardian::fork_guardian;
use super::message::{Channel, Notice, Request, Spec};
use super::options::{Ended, RunError, RunOptions};
use super::spawn::Place;
use super::stops::is_stopped;
use super::terminal::Terminal;
use super::witness::{Heard, Hearing, Witness};
use crate::ProcessId;
use crate::kill::ending::Ending;
use crate::kill::outcome::{Order, Rest};
use crate::kill::walk;
use crate::process::{Death, may_be_same_process};
use crate::sys::child::{self, become_subreaper};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::poll::wait_for;
use crate::sys::signals::{Signals, is_forwarded, stop_self};

/// Signals within this time after the death of the command have asked for that.
const TWICE_AT_ONCE: Duration = Duration::from_millis(200);

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
    if let Some(signal) = options.parent_death_signal {
        child::hear_of_parents_end(signal.number())?;
    }
    let terminal = Terminal::look(options.is_isolated());
    let spec = Spec {
        words: options.words.clone(),
        ..Spec::default()
    };
    let place = Place {
        group: terminal.group(),
        before,
    };
    // In this order: until it is to start, the guardian is in this group, and hears what the
    // witness cannot yet. Without a witness, what comes is taken for what it mostly is.
    let (guardian, mut channel) = fork_guardian(&spec, place)?;
    let hearing = Hearing::new(Witness::start().ok());
    // A guardian that does not take it is dead, which the first wait shows.
    let _ = channel.send(&Request::Start);
    if options.leaves_directory {
        child::leave_directory();
    }
    let mut owner = Owner {
        options,
        signals,
        hearing,
        is_ready: false,
        channel: Some(channel),
        terminal,
        guardian,
        command: None,
        continuations: 0,
        death: None,
        died: None,
        left_daemons: false,
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
    hearing: Hearing,
    /// True once the process of the command is there: before, nothing could be handed on.
    is_ready: bool,
    /// `None` once the guardian is gone.
    channel: Option<Channel>,
    terminal: Terminal,
    guardian: u32,
    command: Option<ProcessId>,
    /// SIGCONTs that were handed on to it.
    continuations: u64,
    death: Option<Death>,
    /// The time when its death was reported.
    died: Option<Instant>,
    left_daemons: bool,
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
                Some(self.signals.fd()).filter(|_| self.is_ready),
                self.channel
                    .as_ref()
                    .map(|channel| channel.stream().as_fd()),
                ending.and_then(Ending::killer_fd),
            ];
            let [_, by_guardian, by_killer] = wait_for(sources, ending.map(Ending::wait))?;
            if by_killer && let Some(ending) = &mut self.ending {
                ending.read_killer();
            }
            let (notices, is_open) = if by_guardian {
                self.receive()
            } else {
                (Vec::new(), true)
            };
            // After the notices, and taken before them: what has ended the command has come to this
            // process too, and asks nothing more of it.
            if self.is_ready {
                for heard in self.hearing.hear(&self.signals)? {
                    self.take(heard);
                }
            }
            for notice in notices {
                self.apply(notice);
            }
            if !is_open && self.channel.take().is_some() {
                self.bury_guardian();
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

    /// Returns what the guardian has sent, and whether it is still there.
    fn receive(&mut self) -> (Vec<Notice>, bool) {
        let channel = self.channel.as_mut();
        channel.map_or((Vec::new(), true), |channel| {
            channel.receive().unwrap_or_default()
        })
    }

    fn apply(&mut self, notice: Notice) {
        match notice {
            Notice::Ready { heard } => {
                self.hearing.note(heard);
                self.is_ready = true;
            }
            Notice::Started { id, .. } => self.command = Some(id),
            Notice::Failed { errno, .. } => {
                self.failed = Some(errno);
                self.hearing.dismiss();
                self.end();
            }
            // Unless a SIGCONT that was handed on has ended that stop, or is about to.
            Notice::Stopped { signal, after, .. } if after == self.continuations => {
                self.stop(signal);
            }
            Notice::Died { death, .. } => {
                self.death = Some(death);
                self.died = Some(Instant::now());
                self.hearing.dismiss();
                self.terminal.take_back();
                self.end();
            }
            Notice::Daemons => self.left_daemons = true,
            Notice::Ended(rest) => self.rest = Some(rest),
            Notice::Stopped { .. } | Notice::Killed { .. } => {}
        }
    }

    fn end(&mut self) {
        let order = Order {
            signal: Some(self.options.signal.number()),
            grace: self.options.grace,
            keep: self.options.keep_orphans,
            keep_matching: self.options.keep_matching.clone(),
        };
        self.send(&Request::End(order));
    }

    /// Takes over when its end of the channel is closed, unless it has done its work: what was
    /// below the guardian is below this one now.
    fn bury_guardian(&mut self) {
        child::wait_for_end(self.guardian);
        // It is none of what the command has left.
        self.hearing.dismiss();
        if self.rest.is_none() && self.failed.is_none() {
            raise_descriptor_limit();
            let mut ending = Ending::begin(Order {
                keep: self.options.keep_orphans,
                keep_matching: self.options.keep_matching.clone(),
                ..Order::default()
            });
            ending.hurry();
            self.ending = Some(ending);
        }
    }

    /// Takes a signal for this process, or for its group.
    fn take(&mut self, heard: Heard) {
        let signal = heard.signal.number;
        if !is_forwarded(signal) {
            return;
        }
        if self.death.is_some() {
            self.hurry(signal);
            return;
        }
        if !self.options.is_isolated() {
            // What is for the group the command has heard itself.
            if !heard.to_group {
                self.hand_on(signal, false);
            }
            return;
        }
        let is_continue = signal == libc::SIGCONT;
        if is_continue && let Some(command) = self.command {
            self.terminal.lend(command.pid);
        }
        if let Some(signal) = self.options.rewritten(signal) {
            let is_for_all = heard.to_group || self.options.is_group || is_continue;
            self.hand_on(signal, is_for_all);
        }
    }

    fn hand_on(&mut self, signal: i32, group: bool) {
        self.continuations += u64::from(signal == libc::SIGCONT);
        self.send(&Request::Signal {
            worker: 0,
            signal,
            group,
        });
    }

    /// Ends the grace: who asks again, once the command is dead, does not want to wait for it. Some
    /// ask twice at once, the process and its group.
    fn hurry(&mut self, signal: i32) {
        let is_end = matches!(
            signal,
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP
        );
        if is_end && self.died.is_none_or(|died| died.elapsed() > TWICE_AT_ONCE) {
            self.send(&Request::Hurry);
        }
    }

    /// Stops the job with the command, which is this process to whoever started it.
    fn stop(&mut self, signal: i32) {
        let is_jobs = matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
        // SIGSTOP was for the command alone, and who sent it continues it; unless the shell waits
        // for a command at the terminal.
        if !is_jobs && !self.terminal.is_in_front() {
            return;
        }
        self.terminal.stopped();
        let command = self.command;
        // It may go on by now.
        if !stop_self(signal, || command.is_none_or(|it| is_stopped(it.pid))) {
            // Nobody could continue the job: it goes on, as the kernel would have it.
            if let Some(command) = command {
                self.terminal.lend(command.pid);
            }
            self.hand_on(libc::SIGCONT, self.options.is_isolated());
        }
    }

    fn reap(&mut self) {
        while let Some(reaped) = walk::reap() {
            self.hearing.reaped(reaped.id.pid);
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
                left_daemons: self.left_daemons,
            }),
            _ => Err(RunError::Failed(io::Error::other(
                "its parent was killed before it had started",
            ))),
        }
    }
}

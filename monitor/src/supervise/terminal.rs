//! The terminal of `lifemon run`: the user's shell sees one job that stops, goes on and ends. A
//! command that shares the process group of its owner is at the terminal as the owner is; one with
//! a group of its own gets the foreground where it is interactive.

use std::fs::File;
use std::io::IsTerminal as _;

use super::spawn::Group;
use crate::sys::terminal;

/// The controlling terminal, and this process's place at it.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: Option<File>,
    own_group: i32,
    /// The process group for the command.
    group: Group,
    /// If set, the command takes the terminal where this process has the foreground.
    takes_front: bool,
    /// True while the command has the terminal.
    is_lent: bool,
}

impl Terminal {
    /// Looks around, for a command with a process group of its own or without. In a pipeline the
    /// others need the terminal as well, so only a command whose input and output are terminals is
    /// taken for an interactive one.
    pub(super) fn look(is_isolated: bool) -> Self {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok();
        let is_interactive =
            tty.is_some() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut terminal = Self {
            tty,
            own_group: nix::unistd::getpgrp().as_raw(),
            group: if is_isolated {
                Group::Own
            } else {
                Group::Shared
            },
            takes_front: is_isolated && is_interactive,
            is_lent: false,
        };
        if terminal.takes_front && terminal.is_in_front() {
            terminal.group = Group::Foreground;
            terminal.is_lent = true;
        }
        terminal
    }

    /// Returns the process group for the command.
    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Returns whether the group of this process has the terminal.
    pub(super) fn is_in_front(&self) -> bool {
        self.foreground() == Some(self.own_group)
    }

    /// Notes that the job was stopped: the shell has the terminal.
    pub(super) fn stopped(&mut self) {
        self.is_lent = false;
    }

    /// Gives the command the terminal when the job goes on in the foreground.
    pub(super) fn lend(&mut self, group: u32) {
        if self.takes_front && self.is_in_front() {
            self.give(group.cast_signed());
            self.is_lent = true;
        }
    }

    /// Takes the terminal back when the command has ended.
    pub(super) fn take_back(&mut self) {
        if self.is_lent {
            self.give(self.own_group);
            self.is_lent = false;
        }
    }

    fn foreground(&self) -> Option<i32> {
        terminal::foreground(self.tty.as_ref()?)
    }

    /// Puts a group in the foreground. SIGTTOU is blocked, so this works from the background too. A
    /// terminal that is lost is lost.
    fn give(&self, group: i32) {
        if let Some(tty) = &self.tty {
            let _ = terminal::set_foreground(tty, group);
        }
    }
}

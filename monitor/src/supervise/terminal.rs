//! The terminal of `lifemon run`: the command gets the foreground where it is interactive, and the
//! user's shell sees one job that stops, goes on and ends.

use std::fs::File;
use std::io::IsTerminal as _;

use super::spawn::Group;
use crate::sys::terminal;

/// The controlling terminal, and this process's place at it.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: Option<File>,
    own_group: i32,
    /// If set, the command takes the terminal where this process has the foreground.
    is_interactive: bool,
    /// True if this process was in the foreground when the command was started.
    was_in_front: bool,
    /// True while the command has the terminal.
    is_lent: bool,
}

impl Terminal {
    /// Looks around. In a pipeline the others need the terminal as well, so only a command whose
    /// input and output are terminals is taken for an interactive one.
    pub(super) fn look() -> Self {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok();
        let own_group = nix::unistd::getpgrp().as_raw();
        let mut terminal = Self {
            is_interactive: tty.is_some()
                && std::io::stdin().is_terminal()
                && std::io::stdout().is_terminal(),
            tty,
            own_group,
            was_in_front: false,
            is_lent: false,
        };
        terminal.was_in_front = terminal.foreground() == Some(own_group);
        terminal.is_lent = terminal.group() == Group::Foreground;
        terminal
    }

    /// Returns the process group for the command. In the foreground without taking it, the command
    /// stays in this process's group: then it may use the terminal, as a pager in a pipeline does.
    pub(super) fn group(&self) -> Group {
        match (self.was_in_front, self.is_interactive) {
            (true, true) => Group::Foreground,
            (true, false) => Group::Join(self.own_group),
            (false, _) => Group::Own,
        }
    }

    /// Returns whether the terminal sends to the command as well what it sends to this process.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.group(), Group::Join(_))
    }

    /// Returns whether the command has the terminal.
    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Notes that the job was stopped: the shell has the terminal.
    pub(super) fn stopped(&mut self) {
        self.is_lent = false;
    }

    /// Gives the command the terminal when the job goes on in the foreground.
    pub(super) fn lend(&mut self, group: u32) {
        if self.is_interactive && self.foreground() == Some(self.own_group) {
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

//! Who is kept when everything below a process is to end: whose name or command line matches a
//! pattern, and what is below them. Once kept, a process is kept for good: it may take another
//! name.

use std::collections::HashSet;

use super::walk::Descendant;
use crate::ProcessId;
use crate::proc;

/// A pattern, and who was found by it.
#[derive(Debug, Default)]
pub(super) struct Keep {
    pattern: Option<Pattern>,
    kept: HashSet<ProcessId>,
}

impl Keep {
    /// Takes a pattern. One that cannot be read means nobody: whoever has typed it was told.
    pub(super) fn new(pattern: Option<&str>) -> Self {
        Self {
            pattern: pattern.and_then(Pattern::new),
            kept: HashSet::new(),
        }
    }

    /// Returns whether anybody may be kept.
    pub(super) const fn is_given(&self) -> bool {
        self.pattern.is_some()
    }

    /// Returns whether this process is kept. Asked of parents before their children.
    pub(super) fn keeps(&mut self, descendant: &Descendant) -> bool {
        let Some(pattern) = &self.pattern else {
            return false;
        };
        let id = descendant.id;
        let is_below = || {
            let parent = proc::parent(id);
            parent.is_some_and(|parent| self.kept.iter().any(|kept| kept.pid == parent))
        };
        let is_kept = self.kept.contains(&id) || is_below() || pattern.matches(id, descendant);
        if is_kept {
            self.kept.insert(id);
        }
        is_kept
    }

    /// Returns those who were found.
    pub(super) fn found(&self) -> impl Iterator<Item = ProcessId> {
        self.kept.iter().copied()
    }
}

/// A pattern of names and command lines.
#[cfg(feature = "cli")]
#[derive(Debug)]
struct Pattern(regex::bytes::Regex);

#[cfg(feature = "cli")]
impl Pattern {
    fn new(text: &str) -> Option<Self> {
        regex::bytes::Regex::new(text).ok().map(Self)
    }

    fn matches(&self, id: ProcessId, descendant: &Descendant) -> bool {
        let name = descendant.name().unwrap_or_default();
        let command = proc::command_line(id).unwrap_or_default();
        self.0.is_match(name.as_bytes()) || self.0.is_match(&command.joined())
    }
}

/// A pattern that nobody can have given: only the command line takes one.
#[cfg(not(feature = "cli"))]
#[derive(Debug)]
enum Pattern {}

#[cfg(not(feature = "cli"))]
impl Pattern {
    fn new(_: &str) -> Option<Self> {
        None
    }

    fn matches(&self, _: ProcessId, _: &Descendant) -> bool {
        match *self {}
    }
}

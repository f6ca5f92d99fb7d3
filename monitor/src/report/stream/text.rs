//! A stream as text for people: the tree when watching began, one line an event, a closing summary.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::{SenderRoot, Summary, word};
use crate::ProcessId;
use crate::forest::walk;
use crate::gpu::release::News;
use crate::kernel::clock::WallClock;
use crate::loss::Loss;
use crate::process::{Cause, Death, Died, Process, Who};
#[cfg(feature = "agent")]
use crate::report::out::printable;
use crate::report::text::{self, Tone, duration_ms, duration_us, from, how, paint, process, who};
use crate::session::Start;
use crate::watch::{Happening, What};
use crate::words::count;

/// Style of the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    clock: WallClock,
    colour: bool,
}

impl Text {
    /// Begins a stream with or without colour.
    #[must_use]
    pub(super) const fn new(clock: WallClock, colour: bool) -> Self {
        Self { clock, colour }
    }

    fn paint(self, tone: Tone, text: &str) -> String {
        paint(self.colour, tone, text)
    }

    /// Returns the local time of day with microseconds and the offset from UTC.
    fn time(self, at_ns: Option<u64>) -> String {
        let time = at_ns.map(|at| self.clock.local_time(at));
        let time = time.unwrap_or_else(|| "     time unknown    ".to_owned());
        self.paint(Tone::Faint, &time)
    }

    /// Writes the snapshot: the tree with its ghosts.
    #[must_use]
    pub(super) fn attached(self, start: &Start, is_pinned: bool) -> String {
        let mut text = format!(
            "watching the tree of {}: {} alive, {} dead with living descendants\n",
            process(&start.root),
            start.members.len(),
            start.ghosts.len(),
        );
        let since = self.clock.local(start.since_ns);
        let _ = if is_pinned {
            writeln!(text, "lineage known since {since} (host tracker)")
        } else {
            writeln!(
                text,
                "lineage known since now; what is older is inferred (~) from parents"
            )
        };
        for lost in &start.losses {
            let count = match lost.count {
                0 => String::new(),
                count => format!("{count}: "),
            };
            let line = format!("not complete: {count}{}\n", lost.loss.advice());
            text.push_str(&self.paint(Tone::Bad, &line));
        }
        self.tree(&mut text, start);
        text
    }

    /// Adds the tree: members, and ghosts where they belong. What has no creator here, or is the
    /// root, begins at the margin.
    fn tree(self, text: &mut String, start: &Start) {
        let ghosts = start.ghosts.iter().map(|ghost| &ghost.process);
        let listed: HashMap<_, _> = start
            .members
            .iter()
            .chain(ghosts)
            .map(|process| (process.id, process))
            .collect();
        let dead: HashMap<_, _> = start
            .ghosts
            .iter()
            .map(|ghost| (ghost.process.id, &ghost.died))
            .collect();
        let mut children: HashMap<ProcessId, Vec<ProcessId>> = HashMap::new();
        let mut tops = Vec::new();
        for process in listed.values() {
            match process
                .creator
                .filter(|creator| listed.contains_key(creator))
            {
                Some(creator) if process.id != start.root.id => {
                    children.entry(creator).or_default().push(process.id);
                }
                _ => tops.push(process.id),
            }
        }
        for list in children.values_mut() {
            list.sort_unstable();
        }
        tops.sort_unstable();
        let below = |id: &ProcessId| children.get(id).map_or(&[][..], Vec::as_slice);
        for (id, depth) in walk(&tops, below) {
            let line = match dead.get(&id) {
                Some(died) => self.ghost(listed[&id], died),
                None => member(listed[&id]),
            };
            text::line(text, depth, &line);
        }
    }

    fn ghost(self, of: &Process, died: &Died) -> String {
        let at = self.clock.local_time(died.at_ns);
        let at = at.get(..8).unwrap_or_default();
        let how = text::how(&died.death);
        let line = format!("\u{2020} {}  {how} at {at}", text::process(of));
        self.paint(Tone::Faint, &line)
    }

    /// Writes one happening.
    #[must_use]
    pub(super) fn happening(
        self,
        happening: &Happening,
        parent: Option<Who>,
        sender_root: Option<&SenderRoot>,
    ) -> String {
        let creator = happening.creator.as_ref().map(who);
        let (tone, details) = match &happening.what {
            What::Fork => {
                let by = creator.map(|creator| format!("  by {creator}"));
                (Some(Tone::Good), by.unwrap_or_default())
            }
            What::Exec => (None, String::new()),
            What::Signal {
                signal,
                sender,
                parent_death,
            } => {
                let mut signal = format!("  {signal}{}", from(sender.as_ref()));
                if *parent_death {
                    signal.push_str(", for its parent died (parent-death signal)");
                }
                if let Some(root) = sender_root {
                    let state = if root.alive { "" } else { "\u{2020} " };
                    let _ = write!(signal, " (of the tree of {state}{})", who(&root.who));
                }
                (Some(Tone::Warn), signal)
            }
            What::Exit { death, orphans } => {
                let tone = match death {
                    Some(death) if death.code() == Some(0) => Tone::Faint,
                    _ => Tone::Bad,
                };
                let details = self.exit(death.as_ref(), happening.age_ms(), orphans);
                (Some(tone), details)
            }
            What::Gone { after_ns } => {
                let after = |ns: u64| format!("  {} after exit", duration_us(ns / 1_000));
                (Some(Tone::Faint), after_ns.map(after).unwrap_or_default())
            }
            What::Orphaned { root_alive } => {
                let class = if *root_alive {
                    "reparented"
                } else {
                    "stranded"
                };
                let parent = parent.map(|parent| format!(", parent is now {}", parent.id.pid));
                let creator = creator.map(|creator| format!("; creator {creator} is dead"));
                let (parent, creator) = (parent.unwrap_or_default(), creator.unwrap_or_default());
                (Some(Tone::Warn), format!("  {class}{parent}{creator}"))
            }
        };
        let kind = format!("{:<8}", word(&happening.what));
        let kind = tone.map_or_else(|| kind.clone(), |tone| self.paint(tone, &kind));
        let (time, subject) = (self.time(happening.at_ns), process(&happening.process));
        let mark = if happening.resynced {
            "  (resynced)"
        } else {
            ""
        };
        format!("{time} {kind} {subject}{details}{mark}\n")
    }

    /// Returns how a process died, how old it was, and whom it has orphaned.
    fn exit(self, death: Option<&Death>, age_ms: Option<u64>, orphans: &[Who]) -> String {
        let how = death.map_or_else(|| "how is not known".to_owned(), how);
        let age = age_ms.map(|age| format!(", aged {}", duration_ms(age)));
        let age = age.unwrap_or_default();
        if orphans.is_empty() {
            return format!("  {how}{age}");
        }
        let list: Vec<_> = orphans.iter().map(who).collect();
        let list = format!("orphans {}", list.join(", "));
        format!("  {how}{age}  {}", self.paint(Tone::Warn, &list))
    }

    /// Writes what became of the GPU memory of a process that died.
    #[must_use]
    pub(super) fn news(self, news: &News, of: Option<&Process>, now_ns: u64) -> String {
        let subject = |id: ProcessId| process(of.unwrap_or(&Process::unknown(id)));
        match news {
            News::Released {
                id,
                at_ns,
                after_ns,
            } => format!(
                "{} {} {}  GPU memory released {} after exit\n",
                self.time(Some(*at_ns)),
                self.paint(Tone::Faint, "released"),
                subject(*id),
                duration_us(after_ns / 1_000),
            ),
            News::StillHeld {
                id,
                after_ns,
                state,
            } => format!(
                "{} {} {}  GPU memory still held after {}, {state}\n",
                self.time(Some(now_ns)),
                self.paint(Tone::Bad, "held    "),
                subject(*id),
                duration_us(after_ns / 1_000),
            ),
            News::Hung | News::Failed(_) => String::new(),
        }
    }

    /// Writes that something was lost, or recovered.
    #[must_use]
    pub(super) fn lost(self, at_ns: u64, loss: Loss, count: u64, recovered: bool) -> String {
        let time = self.time(Some(at_ns));
        if recovered {
            return format!(
                "{time} {} {count}: recovered from the kernel's map\n",
                self.paint(Tone::Good, "lost    ")
            );
        }
        format!(
            "{time} {} {count}: {}\n",
            self.paint(Tone::Bad, "lost    "),
            loss.advice()
        )
    }

    /// Writes that events were not told, in the word of who was to tell them.
    #[cfg(feature = "agent")]
    #[must_use]
    pub(super) fn not_told(self, at_ns: u64, reason: &str) -> String {
        let (time, kind) = (self.time(Some(at_ns)), self.paint(Tone::Bad, "lost    "));
        let reason = printable(reason);
        format!("{time} {kind} what happened before this is not known: {reason}\n")
    }

    /// Writes that no member can run again.
    #[must_use]
    pub(super) fn extinct(self, at_ns: u64, complete: bool) -> String {
        let doubt = if complete { "" } else { " (not complete)" };
        format!(
            "{} extinct  no process of the tree is left{doubt}\n",
            self.time(Some(at_ns))
        )
    }

    /// Writes the closing summary.
    #[must_use]
    pub(super) fn detached(self, summary: &Summary<'_>) -> String {
        let totals = summary.totals;
        let exits = |cause| totals.exits.get(&cause).copied().unwrap_or(0);
        let mut text = format!(
            "{} seen, {} alive; exits: {} exited, {} by signal, {} out of memory",
            count(totals.seen, "process"),
            summary.alive,
            exits(Cause::Exited),
            exits(Cause::Signal),
            exits(Cause::Oom),
        );
        if totals.exits_unknown > 0 {
            let _ = write!(text, ", {} unknown", totals.exits_unknown);
        }
        text.push('\n');
        if !summary.orphans.is_empty() {
            let list: Vec<_> = summary.orphans.iter().map(who).collect();
            let line = format!("orphans left alive: {}\n", list.join(", "));
            text.push_str(&self.paint(Tone::Warn, &line));
        }
        if summary.lost_events > 0 {
            let _ = writeln!(
                text,
                "{} lost, {} found again in the kernel's map",
                count(summary.lost_events, "event"),
                totals.resynced
            );
        }
        for loss in summary.losses {
            let line = format!("not complete: {}\n", loss.advice());
            text.push_str(&self.paint(Tone::Bad, &line));
        }
        text
    }
}

/// Returns a member in the tree, with `~` where its creator is inferred.
fn member(of: &Process) -> String {
    let mark = if of.inferred { "~ " } else { "" };
    format!("{mark}{}{}", process(of), text::elided(of))
}

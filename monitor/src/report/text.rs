//! Text for people: the tree when watching began, one line an event, a closing summary.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::json::{Summary, word};
use super::out::printable;
use crate::ProcessId;
use crate::gpu::release::News;
use crate::kernel::clock::WallClock;
use crate::loss::Loss;
use crate::process::{Cause, Death, Process, Sender, Who, signal_name};
use crate::session::Start;
use crate::watch::{Happening, What};

/// Levels that are indented; a deeper tree goes on at this depth.
const DEEPEST_INDENT: usize = 40;

/// How text is written.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    clock: WallClock,
    colour: bool,
}

/// Colours by meaning.
#[derive(Clone, Copy)]
pub(super) enum Tone {
    Bad,
    Warn,
    Good,
    Faint,
}

impl Text {
    /// Text with or without colour.
    #[must_use]
    pub const fn new(clock: WallClock, colour: bool) -> Self {
        Self { clock, colour }
    }

    fn paint(self, tone: Tone, text: &str) -> String {
        paint(self.colour, tone, text)
    }

    /// Time of day in UTC with microseconds.
    fn time(self, at_ns: Option<u64>) -> String {
        let time = at_ns.map(|at| self.clock.rfc3339(at));
        let time = time
            .as_deref()
            .and_then(|time| time.get(11..26))
            .unwrap_or("  time unknown ");
        self.paint(Tone::Faint, time)
    }

    /// The snapshot: the tree with its ghosts.
    #[must_use]
    pub fn attached(self, start: &Start, is_pinned: bool) -> String {
        let mut text = format!(
            "watching the tree of {}: {} alive, {} dead with living descendants\n",
            process(&start.root),
            start.members.len(),
            start.ghosts.len(),
        );
        let since = self.clock.rfc3339(start.since_ns);
        let since = since.get(..19).unwrap_or(&since);
        let _ = if is_pinned {
            writeln!(text, "lineage known since {since}Z (host tracker)")
        } else {
            writeln!(
                text,
                "lineage known since now; what is older is inferred (~) from parents; `lifemon track on` keeps it from now on"
            )
        };
        for (loss, count) in &start.losses {
            let line = format!("not complete: {count}: {}\n", loss.advice());
            text.push_str(&self.paint(Tone::Bad, &line));
        }
        self.tree(&mut text, start);
        text
    }

    fn tree(self, text: &mut String, start: &Start) {
        let mut children: HashMap<ProcessId, Vec<&Process>> = HashMap::new();
        let mut lines: HashMap<ProcessId, String> = HashMap::new();
        let ghosts = start.ghosts.iter();
        let listed: Vec<&Process> = start
            .members
            .iter()
            .chain(ghosts.clone().map(|(ghost, ..)| ghost))
            .collect();
        let known: HashSet<_> = listed.iter().map(|process| process.id).collect();
        for (ghost, died_ns, death) in ghosts {
            let died = self.clock.rfc3339(*died_ns);
            let died = died.get(11..19).unwrap_or_default();
            let line = format!("\u{2020} {}  {} at {died}", process(ghost), how(death));
            lines.insert(ghost.id, self.paint(Tone::Faint, &line));
        }
        let mut tops = Vec::new();
        for process in &listed {
            match process.creator.filter(|creator| known.contains(creator)) {
                Some(creator) if process.id != start.root.id => {
                    children.entry(creator).or_default().push(process);
                }
                _ => tops.push(*process),
            }
        }
        for list in children.values_mut() {
            list.sort_unstable_by_key(|process| std::cmp::Reverse(process.id));
        }
        tops.sort_unstable_by_key(|process| std::cmp::Reverse(process.id));
        let mut open: Vec<_> = tops.into_iter().map(|top| (0, top)).collect();
        let mut shown = HashSet::new();
        while let Some((depth, at)) = open.pop() {
            if !shown.insert(at.id) {
                continue;
            }
            let line = lines.remove(&at.id).unwrap_or_else(|| member(at));
            let _ = writeln!(
                text,
                "{:indent$}{line}",
                "",
                indent = 2 * depth.min(DEEPEST_INDENT)
            );
            open.extend(
                children
                    .remove(&at.id)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|at| (depth + 1, at)),
            );
        }
    }

    /// One happening.
    #[must_use]
    pub fn happening(self, happening: &Happening, parent: Option<u32>) -> String {
        let time = self.time(happening.at_ns);
        let kind = format!("{:<8}", word(&happening.what));
        let subject = process(&happening.process);
        let mut text = match &happening.what {
            What::Fork => {
                let creator = happening
                    .creator
                    .as_ref()
                    .map_or_else(String::new, |creator| format!("  by {}", who(creator)));
                format!(
                    "{time} {} {subject}{creator}",
                    self.paint(Tone::Good, &kind)
                )
            }
            What::Exec => format!("{time} {kind} {subject}"),
            What::Signal { signal, sender } => format!(
                "{time} {} {subject}  {}{}",
                self.paint(Tone::Warn, &kind),
                signal_name(*signal),
                from(sender.as_ref()),
            ),
            What::Exit { death, orphans } => {
                let how = death
                    .as_ref()
                    .map_or_else(|| "how is not known".to_owned(), how);
                let age = happening
                    .age_ms()
                    .map_or_else(String::new, |age| format!(", aged {}", duration_ms(age)));
                let tone = match death {
                    Some(death) if death.code() == Some(0) => Tone::Faint,
                    _ => Tone::Bad,
                };
                let line = format!("{time} {} {subject}  {how}{age}", self.paint(tone, &kind));
                if orphans.is_empty() {
                    line
                } else {
                    let list: Vec<_> = orphans.iter().map(who).collect();
                    format!(
                        "{line}  {}",
                        self.paint(Tone::Warn, &format!("orphans {}", list.join(", ")))
                    )
                }
            }
            What::Gone { after_ns } => {
                let after = after_ns.map_or_else(String::new, |after| {
                    format!("  {} after exit", duration_us(after / 1_000))
                });
                format!("{time} {} {subject}{after}", self.paint(Tone::Faint, &kind))
            }
            What::Orphaned { root_alive } => {
                let class = if *root_alive {
                    "reparented"
                } else {
                    "stranded"
                };
                let parent =
                    parent.map_or_else(String::new, |parent| format!(", parent is now {parent}"));
                let creator = happening
                    .creator
                    .as_ref()
                    .map_or_else(String::new, |creator| {
                        format!("; creator {} is dead", who(creator))
                    });
                format!(
                    "{time} {} {subject}  {class}{parent}{creator}",
                    self.paint(Tone::Warn, &kind)
                )
            }
        };
        if happening.resynced {
            text.push_str("  (resynced)");
        }
        text.push('\n');
        text
    }

    /// What became of the GPU memory of a process that died.
    #[must_use]
    pub fn news(self, news: &News, of: Option<&Process>, now_ns: u64) -> String {
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
            News::Hung => String::new(),
        }
    }

    /// Something was lost, or made good.
    #[must_use]
    pub fn lost(self, at_ns: u64, loss: Loss, count: u64, recovered: bool) -> String {
        let time = self.time(Some(at_ns));
        if recovered {
            return format!(
                "{time} {} {count}: made good from the kernel's map\n",
                self.paint(Tone::Good, "lost    ")
            );
        }
        format!(
            "{time} {} {count}: {}\n",
            self.paint(Tone::Bad, "lost    "),
            loss.advice()
        )
    }

    /// No member can run again.
    #[must_use]
    pub fn extinct(self, at_ns: u64, complete: bool) -> String {
        let doubt = if complete { "" } else { " (not complete)" };
        format!(
            "{} extinct  no process of the tree is left{doubt}\n",
            self.time(Some(at_ns))
        )
    }

    /// The closing summary.
    #[must_use]
    pub fn detached(self, summary: &Summary<'_>) -> String {
        let totals = summary.totals;
        let count = |cause| totals.exits.get(&cause).copied().unwrap_or(0);
        let mut text = format!(
            "{} processes seen, {} alive; exits: {} exited, {} by signal, {} out of memory",
            totals.seen,
            summary.alive,
            count(Cause::Exited),
            count(Cause::Signal),
            count(Cause::Oom),
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
                "{} events lost, {} found again in the kernel's map",
                summary.lost_events, totals.resynced
            );
        }
        for loss in summary.losses {
            let line = format!("not complete: {}\n", loss.advice());
            text.push_str(&self.paint(Tone::Bad, &line));
        }
        text
    }
}

/// Text in a colour, where colour is wanted.
pub(super) fn paint(colour: bool, tone: Tone, text: &str) -> String {
    if !colour {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Bad => "31",
        Tone::Warn => "33",
        Tone::Good => "32",
        Tone::Faint => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// `4251 python3`.
pub(super) fn process(process: &Process) -> String {
    let name = process
        .name
        .as_deref()
        .map_or_else(|| "?".to_owned(), printable);
    match process.ns_pid {
        Some(ns_pid) if ns_pid != process.id.pid && ns_pid != 0 => {
            format!("{} {name} (pid {ns_pid} in its namespace)", process.id.pid)
        }
        _ => format!("{} {name}", process.id.pid),
    }
}

/// A member in the tree, with `~` where its creator is inferred.
fn member(of: &Process) -> String {
    let mark = if of.inferred { "~ " } else { "" };
    let elided = if of.elided > 0 {
        format!("  ({} dead creators not kept)", of.elided)
    } else {
        String::new()
    };
    format!("{mark}{}{elided}", process(of))
}

pub(super) fn who(who: &Who) -> String {
    match &who.name {
        Some(name) => format!("{} {}", who.id.pid, printable(name)),
        None => who.id.pid.to_string(),
    }
}

fn from(sender: Option<&Sender>) -> String {
    match sender {
        Some(Sender::Process(sender)) => format!(" from {}", who(sender)),
        Some(Sender::Kernel) => " from the kernel".to_owned(),
        None => String::new(),
    }
}

/// Returns how it died, in words.
pub(super) fn how(death: &Death) -> String {
    printable(&death.to_string())
}

pub(super) fn duration_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

fn duration_us(us: u64) -> String {
    if us < 1_000 {
        format!("{us} us")
    } else {
        duration_ms(us / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(duration_ms(5), "5 ms");
        assert_eq!(duration_ms(1_250), "1.2 s");
        assert_eq!(duration_ms(61_000), "1 min 1 s");
        assert_eq!(duration_ms(3_660_000), "1 h 1 min");
        assert_eq!(duration_us(40), "40 us");
    }

    #[test]
    fn no_colour_means_no_escape() {
        let text = Text::new(WallClock::now(), false);
        assert!(!text.extinct(5, true).contains('\x1b'));
        assert!(
            Text::new(WallClock::now(), true)
                .extinct(5, true)
                .contains('\x1b')
        );
    }
}

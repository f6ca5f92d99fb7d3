//! Pieces of the text for people: names, deaths, durations, colours, losses, lines of a tree.

use std::fmt::Write as _;

use super::out::printable;
pub(super) use super::out::{Tone, paint};
use crate::loss::Loss;
use crate::process::{Death, Process, Sender, Who};
use crate::words::count;

/// Levels that are indented; a deeper tree goes on at this depth.
const DEEPEST_INDENT: usize = 40;

/// Adds a line of a tree, this far below its root.
pub(super) fn line(text: &mut String, depth: usize, line: &str) {
    let indent = 2 * depth.min(DEEPEST_INDENT);
    let _ = writeln!(text, "{:indent$}{line}", "");
}

/// Adds a line for each reason why an answer is not complete.
pub(super) fn incomplete(text: &mut String, colour: bool, losses: &[Loss]) {
    for loss in losses {
        let line = format!("not complete: {}\n", loss.advice());
        text.push_str(&paint(colour, Tone::Warn, &line));
    }
}

/// Returns `4251 python3`.
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

/// Returns what is shown of dead creators that are not known any more, or nothing.
pub(super) fn elided(process: &Process) -> String {
    match process.elided {
        0 => String::new(),
        dead => format!("  ({} not kept)", count(dead, "dead creator")),
    }
}

/// Returns `4251 python3`, or the pid alone.
pub(super) fn who(who: &Who) -> String {
    printable(&who.to_string())
}

/// Returns ` from 77 bash`, or nothing.
pub(super) fn from(sender: Option<&Sender>) -> String {
    let from = |sender: &Sender| format!(" from {}", printable(&sender.to_string()));
    sender.map(from).unwrap_or_default()
}

/// Returns how it died, in words.
pub(super) fn how(death: &Death) -> String {
    printable(&death.to_string())
}

/// Returns a duration as people say it.
pub(super) fn duration_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Returns what [`duration_ms`] does, of a shorter one.
pub(super) fn duration_us(us: u64) -> String {
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
    fn deep_lines_are_indented_no_further() {
        let mut text = String::new();
        line(&mut text, 1, "a");
        line(&mut text, DEEPEST_INDENT + 5, "b");
        assert!(text.starts_with("  a\n"));
        assert_eq!(text.len(), "  a\n".len() + 2 * DEEPEST_INDENT + "b\n".len());
    }
}

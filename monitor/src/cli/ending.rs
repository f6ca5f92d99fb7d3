//! The end of orphans, for all commands that offer it: what may be ended, the question before, and
//! what was spared.
//!
//! Only what is *leaked* is ended without being asked for by name; what was *left* needs a selector
//! or `--left`, and what is *deliberate* or *inferred* needs `--force`. Without a selector a person
//! is asked, and a script needs `--yes`.

use std::io::{BufRead as _, IsTerminal as _};

use super::Usage;
use crate::kernel::Tracker;
use crate::kill::{Guard, KillOptions, KillReport, kill_trees};
use crate::orphan::{Orphan, Verdict};
use crate::proc;
use crate::report::ended::{self, Ended, Spared};
use crate::report::out;

/// What the caller has agreed to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Consent {
    /// What was left is meant too: it was asked for, or chosen by a selector.
    pub(super) left: bool,
    /// What is deliberate, or older than tracking, is meant too.
    pub(super) force: bool,
}

impl Consent {
    /// Returns why an orphan of this kind is spared; `None` where it is not.
    fn refusal(self, verdict: Verdict) -> Option<&'static str> {
        match verdict {
            Verdict::Leaked => None,
            Verdict::Left if self.left || self.force => None,
            Verdict::Left => Some("--left or a selector ends it too"),
            Verdict::Deliberate | Verdict::Inferred if self.force => None,
            Verdict::Deliberate | Verdict::Inferred => Some("--force ends it too"),
        }
    }
}

/// Whether somebody has to be asked before anything is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// The orphans were chosen, or it was agreed to.
    None,
    /// The person at the terminal is asked.
    Ask,
}

impl Question {
    /// Returns whether to ask. `command` is what was typed.
    ///
    /// # Errors
    /// [`Usage`] where nothing was chosen, nothing agreed to, and nobody can be asked.
    pub(super) fn new(has_selector: bool, yes: bool, command: &str) -> Result<Self, Usage> {
        if has_selector || yes {
            return Ok(Self::None);
        }
        if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            return Ok(Self::Ask);
        }
        Err(Usage(format!(
            "{command} without a selector ends what was left behind on the whole host: nothing was \
             killed; look at it without {command} first, then add --yes"
        )))
    }

    /// Asks, where that is needed; returns whether to go on.
    fn agrees(self, plan: &[&Orphan]) -> anyhow::Result<bool> {
        if self == Self::None || plan.is_empty() {
            return Ok(true);
        }
        out::tell_text(&ended::plan(plan))?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
    }
}

/// Kills these orphans with everything below them, all as one; never what this command itself was
/// started from.
pub(super) async fn end(
    tracker: Tracker,
    orphans: &[Orphan],
    consent: Consent,
    question: Question,
    options: &KillOptions,
) -> anyhow::Result<Ended> {
    let guard = Guard::new(&tracker.snapshot()?);
    let mut doomed = Vec::new();
    let mut spared = Vec::new();
    for orphan in orphans {
        let refusal = consent.refusal(orphan.verdict).map(str::to_owned);
        let refusal = refusal.or_else(|| {
            let guarded = guard.check(orphan.process.id, false);
            guarded.err().map(|error| error.to_string())
        });
        match refusal {
            Some(reason) => spared.push(Spared::new(orphan, reason)),
            None if proc::is_live(orphan.process.id) => doomed.push(orphan),
            None => {}
        }
    }
    if !question.agrees(&doomed)? {
        let reason = "the answer was no";
        spared.extend(
            doomed
                .iter()
                .map(|orphan| Spared::new(orphan, reason.to_owned())),
        );
        doomed.clear();
    }
    let ids: Vec<_> = doomed.iter().map(|orphan| orphan.process.id).collect();
    let report: Option<KillReport> = match ids.split_first() {
        Some((root, others)) => Some(kill_trees(tracker, *root, others, options).await?),
        None => None,
    };
    let tree = |orphan: &&Orphan| (orphan.process.who(), orphan.subtree.processes);
    let trees = doomed.iter().map(tree).collect();
    Ok(Ended {
        report,
        trees,
        spared,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_leaked_is_ended_without_being_asked_for() {
        let ended = |left, force| {
            let consent = Consent { left, force };
            let all = Verdict::ALL.into_iter();
            all.filter(|verdict| consent.refusal(*verdict).is_none())
                .collect::<Vec<_>>()
        };
        assert_eq!(ended(false, false), [Verdict::Leaked]);
        assert_eq!(ended(true, false), [Verdict::Leaked, Verdict::Left]);
        assert_eq!(ended(false, true), Verdict::ALL);
    }

    #[test]
    fn where_something_was_chosen_nobody_is_asked() {
        assert_eq!(
            Question::new(true, false, "--kill").unwrap(),
            Question::None
        );
        assert_eq!(
            Question::new(false, true, "--kill").unwrap(),
            Question::None
        );
    }
}

//! What makes an answer incomplete, in the words of the output.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A reason why an answer is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Loss {
    /// The watcher's ring was full.
    RingFull,
    /// The membership map was full.
    MembersFull,
    /// The lineage map was full: processes without a record.
    LineageFull,
    /// The kernel skipped runs of a hook.
    MissedRuns,
    /// The lineage of some processes was lost, or did not settle.
    Unsettled,
    /// The tracker was switched off.
    SwitchedOff,
    /// The host's tracker is off, or was switched on later than what was asked about: nothing is
    /// known of what happened before.
    NoHistory,
    /// The host's tracker is on, and this user may not read it.
    TrackerUnreadable,
    /// This user may not see whether the host's tracker is on.
    TrackerHidden,
    /// `/proc` does not show every process.
    ProcHidden,
    /// The driver of a GPU does not answer.
    DriverHung,
    /// The driver of a GPU has failed.
    DriverFailed,
    /// Files of some processes may not be looked at.
    Unreadable,
    /// No tracker answers for this: deaths and descendants are known from parents alone.
    NoTracker,
    /// The guardian of a manager is dead.
    GuardianDead,
    /// The process that kills with eBPF has ended without a report.
    ReportLost,
    /// The flight recorder has taken the place of older deaths for later ones.
    Overwritten,
}

impl Loss {
    /// Returns the word of the JSON output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::MembersFull => "members_full",
            Self::LineageFull => "lineage_full",
            Self::MissedRuns => "missed_runs",
            Self::Unsettled => "unsettled",
            Self::SwitchedOff => "switched_off",
            Self::NoHistory => "no_history",
            Self::TrackerUnreadable => "tracker_unreadable",
            Self::TrackerHidden => "tracker_hidden",
            Self::ProcHidden => "proc_hidden",
            Self::DriverHung => "driver_hung",
            Self::DriverFailed => "driver_failed",
            Self::Unreadable => "unreadable",
            Self::NoTracker => "no_tracker",
            Self::GuardianDead => "guardian_dead",
            Self::ReportLost => "report_lost",
            Self::Overwritten => "overwritten",
        }
    }

    /// Returns whether it is only that history begins too late: nothing went wrong, and what is
    /// known is exact.
    #[must_use]
    pub const fn is_missing_history(self) -> bool {
        matches!(
            self,
            Self::NoHistory | Self::TrackerUnreadable | Self::TrackerHidden
        )
    }

    /// Returns what happened and what to do about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::RingFull => "the ring buffer was full; use a larger --ring-size",
            Self::MembersFull => "the membership map was full; use a larger --max-processes",
            Self::LineageFull => "the lineage map was full; use a larger --max-processes",
            Self::MissedRuns => "the kernel skipped runs of a hook",
            Self::Unsettled => "the lineage of some processes did not settle; attach again",
            Self::SwitchedOff => "the tracker was switched off",
            Self::NoHistory => {
                "what died before tracking began is not known; \
                 `lifemon track on` keeps it from now on, with --at-boot always"
            }
            Self::TrackerUnreadable => {
                "the tracker is on, but not readable for you, so what died before now is not \
                 known; run this as root"
            }
            Self::TrackerHidden => {
                "whether the tracker is on is not visible for you, so what died before now is not \
                 known; run this as root"
            }
            Self::ProcHidden => {
                "/proc is not mounted, or hides processes, so what only it knows is missing; \
                 run this as root, with the host's /proc"
            }
            Self::DriverHung => "the driver of a GPU does not answer; see the kernel's log",
            Self::DriverFailed => "the driver of a GPU has failed; see `lifemon gpu`",
            Self::Unreadable => "files of some processes may not be looked at; run this as root",
            Self::NoTracker => "there is no tracker, so processes are known by their parents alone",
            Self::GuardianDead => "the guardian is dead; restart the server",
            Self::Overwritten => {
                "the flight recorder has overwritten older deaths; ask about a shorter time"
            }
            Self::ReportLost => "the killer ended without a report on those whom it has killed",
        }
    }
}

/// A reason why an answer is not complete, as every answer of lifemon reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Incomplete {
    /// The reason.
    pub reason: Loss,
    /// The number of what is missing, where it is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What happened and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Incomplete {
    /// Returns the reason with a number; 0 where there is none.
    #[must_use]
    pub(crate) fn counted(reason: Loss, count: u64) -> Self {
        Self {
            count: (count > 0).then_some(count),
            ..reason.into()
        }
    }

    /// Returns the reason with a sentence that knows more than [`Loss::advice`].
    #[must_use]
    pub(crate) fn because(reason: Loss, sentence: impl Into<String>) -> Self {
        Self {
            reason,
            count: None,
            advice: Some(sentence.into()),
        }
    }

    /// Returns each of these losses as a reason.
    #[must_use]
    pub(crate) fn all(losses: &[Loss]) -> Vec<Self> {
        losses.iter().copied().map(Into::into).collect()
    }
}

impl From<Loss> for Incomplete {
    fn from(reason: Loss) -> Self {
        Self::because(reason, reason.advice())
    }
}

/// The sentence, or the word where there is none.
impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.advice.as_deref().unwrap_or_else(|| self.reason.word()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_the_word_of_the_output() {
        let all = [
            Loss::RingFull,
            Loss::MembersFull,
            Loss::LineageFull,
            Loss::MissedRuns,
            Loss::Unsettled,
            Loss::SwitchedOff,
            Loss::NoHistory,
            Loss::TrackerUnreadable,
            Loss::TrackerHidden,
            Loss::ProcHidden,
            Loss::DriverHung,
            Loss::DriverFailed,
            Loss::Unreadable,
            Loss::NoTracker,
            Loss::GuardianDead,
            Loss::ReportLost,
            Loss::Overwritten,
        ];
        for loss in all {
            assert_eq!(serde_json::to_value(loss).unwrap(), loss.word());
        }
    }

    #[test]
    fn a_reason_is_the_same_in_every_answer_and_comes_back_as_it_was() {
        let counted = Incomplete::counted(Loss::RingFull, 7);
        let value = serde_json::to_value(&counted).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "reason": "ring_full", "count": 7, "advice": Loss::RingFull.advice(),
            })
        );
        assert_eq!(
            serde_json::from_value::<Incomplete>(value).unwrap(),
            counted
        );
    }
}

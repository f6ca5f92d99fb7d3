//! What makes an answer incomplete, in the words of the output.

use serde::{Deserialize, Serialize};

/// A reason why an answer is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Label passes did not settle.
    Unsettled,
    /// The tracker was switched off.
    SwitchedOff,
    /// The host's tracker is off: nothing is known of what happened before now.
    NoHistory,
    /// The driver of a GPU does not answer.
    DriverHung,
    /// The driver of a GPU has failed.
    DriverFailed,
    /// Files of some processes may not be looked at.
    Unreadable,
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
            Self::DriverHung => "driver_hung",
            Self::DriverFailed => "driver_failed",
            Self::Unreadable => "unreadable",
        }
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
                "the host's tracker is off, so what died before now is not known; \
                 `lifemon track on` keeps it from now on, with --at-boot always"
            }
            Self::DriverHung => "the driver of a GPU does not answer; see the kernel's log",
            Self::DriverFailed => "the driver of a GPU has failed; see `lifemon gpu`",
            Self::Unreadable => "files of some processes may not be looked at; run this as root",
        }
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
            Loss::DriverHung,
            Loss::DriverFailed,
            Loss::Unreadable,
        ];
        for loss in all {
            assert_eq!(serde_json::to_value(loss).unwrap(), loss.word());
        }
    }
}

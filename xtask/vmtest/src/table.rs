//! The table of kernels in the documentation, between its two markers. Generated, so that it says
//! what was seen and not what was hoped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::report::{Outcome, Ran, Report};

const BEGIN: &str = "<!-- kernels:begin -->";
const END: &str = "<!-- kernels:end -->";

/// What of the doctor's answer depends on the kernel.
const FEATURES: [&str; 3] = ["programs", "exit event", "lineage"];

/// Writes the table into a file.
pub(crate) fn update(file: &Path, reports: &[Report]) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let text = replaced(&text, &table(reports))
        .with_context(|| format!("{} has no lines {BEGIN} and {END}", file.display()))?;
    Ok(fs::write(file, text)?)
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn table(reports: &[Report]) -> String {
    let head = FEATURES.join(" | ");
    let rule = "|---".repeat(FEATURES.len());
    let mut table = format!("| kernel | Debian | {head} | tests |\n|---|---{rule}|---|\n");
    for report in reports {
        if let Outcome::Ran(ran) = &report.outcome {
            let (name, cells) = (report.suite.name, cells(ran));
            table.push_str(&format!("| {} | {name} | {cells} |\n", ran.release));
        }
    }
    let notes = notes(reports);
    if !notes.is_empty() {
        table.push('\n');
    }
    table.extend(notes);
    table
}

/// Lists what was degraded, and why tests were skipped: each reason once, with the kernels it holds
/// for.
fn notes(reports: &[Report]) -> Vec<String> {
    let mut degraded: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let mut skipped: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for report in reports {
        let Outcome::Ran(ran) = &report.outcome else {
            continue;
        };
        for check in ran.degraded() {
            let kernels = degraded.entry((&check.name, &check.detail)).or_default();
            kernels.push(&ran.release);
        }
        for (_, why) in &ran.tests.skipped {
            *skipped
                .entry(why)
                .or_default()
                .entry(&ran.release)
                .or_default() += 1;
        }
    }
    let degraded = degraded.iter().map(|((name, detail), kernels)| {
        let kernels = kernels.join(" and ");
        format!("- {name}, degraded on {kernels}: {detail}.\n")
    });
    let skipped = skipped.iter().map(|(why, kernels)| {
        let kernels: Vec<_> = kernels
            .iter()
            .map(|(kernel, count)| format!("{count} on {kernel}"))
            .collect();
        format!("- Tests skipped, {}: {why}.\n", kernels.join(", "))
    });
    let left_out = reports.iter().filter_map(|report| match &report.outcome {
        Outcome::Ran(ran) if ran.refusal.is_none() && !ran.left_out.is_empty() => {
            let names = ran.left_out.join(", ");
            Some(format!("- Left out on {}: {names}.\n", ran.release))
        }
        _ => None,
    });
    degraded.chain(skipped).chain(left_out).collect()
}

fn cells(ran: &Ran) -> String {
    if ran.refusal.is_some() {
        let how = if ran.is_good() {
            "clearly"
        } else {
            "not clearly"
        };
        return format!("refused | | | {how} refused, exit code 3");
    }
    let state = |feature: &&str| {
        let check = ran.checks.iter().find(|check| check.name == **feature);
        check.map_or("?", |check| check.state.as_str()).to_owned()
    };
    let states: Vec<String> = FEATURES.iter().map(state).collect();
    format!("{} | {}", states.join(" | "), ran.tests.counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Check, Tests};
    use crate::kernels::SUITES;
    use lifemon_tools::libtest::Counts;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(replaced(&text, "new\n"), Some(expected));
        assert_eq!(replaced("no markers", "new\n"), None);
    }

    #[test]
    fn a_kernel_is_a_row_and_what_is_degraded_a_note() {
        let check = |name: &str, state: &str| Check {
            name: name.to_owned(),
            state: state.to_owned(),
            detail: "fires late".to_owned(),
        };
        let ran = Ran {
            release: "6.12.1".to_owned(),
            checks: vec![check("programs", "ok"), check("exit event", "degraded")],
            tests: Tests {
                skipped: vec![("kill::it".to_owned(), "no python3".to_owned())],
                counts: Counts {
                    passed: 7,
                    failed: 0,
                },
                ..Tests::default()
            },
            ..Ran::default()
        };
        let report = Report {
            suite: SUITES[1],
            outcome: Outcome::Ran(Box::new(ran)),
        };
        let table = table(&[report]);
        assert!(table.contains("| 6.12.1 | trixie | ok | degraded | ? | 7 passed, 0 failed |\n"));
        assert!(
            table.ends_with(
                "\n\n- exit event, degraded on 6.12.1: fires late.\n\
                 - Tests skipped, 1 on 6.12.1: no python3.\n"
            ),
            "{table}"
        );
    }
}

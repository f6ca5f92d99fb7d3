//! What came out of each kernel: judged from the guest's console, and shown to people. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::console::{Check, Console, Tests, checks};
use crate::kernels::{Expected, Suite};
use crate::qemu::End;
use crate::shares::is_due;
use lifemon_tools::libtest::Counts;

/// One kernel.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Where the kernel is from.
    pub(crate) suite: Suite,
    /// What became of it.
    pub(crate) outcome: Outcome,
}

/// What became of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It could not be had.
    Skipped(String),
    /// It was booted.
    Ran(Box<Ran>),
}

/// A kernel that was booted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ran {
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Over all modules.
    pub(crate) tests: Tests,
    /// What the doctor found.
    pub(crate) checks: Vec<Check>,
    /// What lifemon said where it refuses to run.
    pub(crate) refusal: Option<String>,
    /// Modules of tests that did not run there, because others have their share.
    pub(crate) left_out: Vec<String>,
    /// Modules of tests that did not run there to their end, because the machine was too slow.
    pub(crate) late: Vec<String>,
    /// What is wrong besides failed tests.
    pub(crate) problems: Vec<String>,
    /// What the kernel complained of.
    pub(crate) complaints: Vec<String>,
    /// From start to end.
    pub(crate) took: Duration,
    /// Where the console is kept.
    pub(crate) console: PathBuf,
}

impl Ran {
    /// Judges a guest by what it printed.
    pub(crate) fn judge(expected: Expected, console: &Console, end: End) -> Self {
        let mut ran = Self {
            release: console.release.clone().unwrap_or_default(),
            ..Self::default()
        };
        let doctor = console.section("doctor");
        ran.checks = doctor.map(checks).unwrap_or_default();
        if end == End::Deadline {
            ran.problems
                .push("the guest was ended at its deadline".to_owned());
        } else if !console.is_done {
            let why = console.panic.clone();
            let why = why.unwrap_or_else(|| "the guest ended too early".to_owned());
            ran.problems.push(why);
        }
        match expected {
            Expected::Works => ran.judge_tests(console),
            Expected::Refuses => ran.judge_refusal(console),
        }
        if let Some(section) = console.section("complaints") {
            let lines = section.lines.iter().filter(|line| !line.trim().is_empty());
            ran.complaints = lines.cloned().collect();
        }
        ran
    }

    fn judge_tests(&mut self, console: &Console) {
        if self.checks.is_empty() {
            self.problems
                .push("no answer of `lifemon doctor`".to_owned());
        }
        let failed = self.checks.iter().filter(|check| check.state == "failed");
        let failed = failed.map(|check| format!("doctor: {}: {}", check.name, check.detail));
        self.problems.extend(failed);
        for section in &console.sections {
            let Some(module) = section.name.strip_prefix("test-") else {
                continue;
            };
            let is_cut = console.cut.contains(&section.name);
            let tests = Tests::read(module, section, is_cut);
            self.tests.counts += tests.counts;
            self.tests.failed.extend(tests.failed);
            self.tests.skipped.extend(tests.skipped);
        }
        let late = console.cut.iter().chain(&console.late);
        let late = late.map(|name| name.strip_prefix("test-").unwrap_or(name));
        self.late = late.map(str::to_owned).collect();
        // Each of them that ran has a verdict, or counts as failed.
        if self.tests.counts == Counts::default() {
            self.problems.push("no test has run".to_owned());
        }
        if self.late.iter().any(|name| is_due(name)) {
            self.problems
                .push("there was no time for what every kernel has to run".to_owned());
        }
    }

    /// Judges a refusal by the contract: a message that names the kernel and what is needed, and
    /// exit code 3.
    fn judge_refusal(&mut self, console: &Console) {
        let refusal = console.section("refusal");
        let text = refusal.map(|section| section.lines.join(" ").trim().to_owned());
        let code = refusal.and_then(|section| section.code);
        let text = text.unwrap_or_default();
        let is_clear = text.contains(&self.release) && text.contains("too old");
        if code != Some(3) || !is_clear {
            let problem = format!("not a clear refusal with code 3: code {code:?}, `{text}`");
            self.problems.push(problem);
        }
        self.refusal = Some(text);
    }

    /// Returns whether everything was as it has to be.
    pub(crate) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.tests.counts.failed == 0
    }

    /// Returns what was not good, in one line: for the end of a long output.
    pub(crate) fn reasons(&self) -> String {
        let failed = self.tests.failed.iter().map(|(test, _)| test.as_str());
        let problems = self.problems.iter().map(String::as_str);
        failed.chain(problems).collect::<Vec<_>>().join(", ")
    }

    /// Returns the features that are not as good as on other kernels.
    pub(crate) fn degraded(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.state == "degraded")
    }
}

impl Report {
    /// Returns whether nothing was left out for want of time.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(&self.outcome, Outcome::Ran(ran) if !ran.late.is_empty())
    }

    /// Returns the tests that ran there; what is wrong besides counts as one that failed.
    pub(crate) fn counts(&self) -> Counts {
        let Outcome::Ran(ran) = &self.outcome else {
            return Counts::default();
        };
        let mut counts = ran.tests.counts;
        if !ran.is_good() && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Skipped(why) => writeln!(f, "skipped {}: {why}", self.suite),
            Outcome::Ran(ran) => show(ran, self.suite, f),
        }
    }
}

fn show(ran: &Ran, suite: Suite, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let verdict = if ran.is_good() { "ok     " } else { "FAILED " };
    let took = ran.took.as_secs_f64();
    let what = match &ran.refusal {
        Some(refusal) => format!("refuses: {refusal}"),
        None => format!("{}, {} skipped", ran.tests.counts, ran.tests.skipped.len()),
    };
    writeln!(
        f,
        "{verdict} {} ({}), {took:.0} s: {what}",
        ran.release, suite.name
    )?;
    for check in &ran.checks {
        writeln!(
            f,
            "        doctor: {}: {}, {}",
            check.name, check.state, check.detail
        )?;
    }
    for (test, why) in &ran.tests.skipped {
        writeln!(f, "        skipped {test}: {why}")?;
    }
    if !ran.left_out.is_empty() && ran.refusal.is_none() {
        let names = ran.left_out.join(", ");
        writeln!(f, "        left out, too long for every kernel: {names}")?;
    }
    if !ran.late.is_empty() {
        let names = ran.late.join(", ");
        writeln!(f, "        left out, no time was left: {names}")?;
    }
    for (test, why) in &ran.tests.failed {
        writeln!(f, "        failed {test}: {why}")?;
    }
    for problem in &ran.problems {
        writeln!(f, "        problem: {problem}")?;
    }
    for complaint in &ran.complaints {
        writeln!(f, "        the kernel said: {complaint}")?;
    }
    if ran.is_good() {
        return Ok(());
    }
    writeln!(f, "        console: {}", ran.console.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::SUITES;

    fn judged(expected: Expected, text: &str, end: End) -> Ran {
        let mut console = Console::default();
        for line in text.lines() {
            console.line(line);
        }
        Ran::judge(expected, &console, end)
    }

    const GOOD: &str = "\
@@vmtest kernel 6.12.1
@@vmtest begin doctor
{\"checks\":[{\"name\":\"exit event\",\"state\":\"degraded\",\"detail\":\"late\"}]}
@@vmtest end doctor 0
@@vmtest begin test-deaths
test result: ok. 3 passed; 0 failed; 0 ignored
@@vmtest end test-deaths 0
@@vmtest begin complaints

@@vmtest end complaints 1
@@vmtest done";

    #[test]
    fn a_good_guest_is_good_and_says_what_is_degraded() {
        let ran = judged(Expected::Works, GOOD, End::Itself);
        assert!(ran.is_good(), "{ran:?}");
        let report = Report {
            suite: SUITES[1],
            outcome: Outcome::Ran(Box::new(ran)),
        };
        let text = report.to_string();
        assert!(text.starts_with("ok      6.12.1 (trixie), 0 s: 3 passed, 0 failed, 0 skipped"));
        assert!(
            text.contains("doctor: exit event: degraded, late"),
            "{text}"
        );
    }

    #[test]
    fn a_guest_without_an_end_is_not() {
        let cut = GOOD.trim_end_matches("@@vmtest done");
        assert!(!judged(Expected::Works, cut, End::Itself).is_good());
        assert!(!judged(Expected::Works, GOOD, End::Deadline).is_good());
        assert!(!judged(Expected::Works, "", End::Itself).is_good());
    }

    #[test]
    fn a_slow_guest_names_what_it_left_out_and_some_must_not_be() {
        let late = |name: &str| {
            let late = format!("@@vmtest late test-{name}\n@@vmtest done");
            judged(
                Expected::Works,
                &GOOD.replace("@@vmtest done", &late),
                End::Itself,
            )
        };
        let good = late("kill");
        assert!(good.is_good() && good.late == ["kill"], "{good:?}");
        assert!(!late("lifecycle").is_good());
    }

    #[test]
    fn a_refusal_must_be_clear() {
        let guest = |text: &str, code: i32| {
            let text = format!(
                "@@vmtest kernel 5.10.1\n@@vmtest begin refusal\n{text}\n\
                 @@vmtest end refusal {code}\n@@vmtest done"
            );
            judged(Expected::Refuses, &text, End::Itself)
        };
        assert!(guest("lifemon: kernel 5.10.1 is too old", 3).is_good());
        assert!(!guest("lifemon: kernel 5.10.1 is too old", 1).is_good());
        assert!(!guest("lifemon: the kernel refused exit", 3).is_good());
    }
}

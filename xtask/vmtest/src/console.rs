//! Reads what a guest printed: its sections, and what libtest and the doctor said in them. Pure.

use serde_json::Value;

use lifemon_tools::libtest::Counts;

const MARK: &str = "@@vmtest ";

/// One command that the guest ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    /// As the plan calls it.
    pub(crate) name: String,
    /// What it printed.
    pub(crate) lines: Vec<String>,
    /// Its exit code; absent when the guest ended first.
    pub(crate) code: Option<i32>,
}

/// Everything of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Console {
    /// What `uname -r` says.
    pub(crate) release: Option<String>,
    /// In the order in which they ran.
    pub(crate) sections: Vec<Section>,
    /// Those that did not begin, because there was no time left.
    pub(crate) late: Vec<String>,
    /// Those that were ended in the middle, because there was no more time.
    pub(crate) cut: Vec<String>,
    /// Whether the plan was carried out to its end.
    pub(crate) is_done: bool,
    /// Why the kernel died, when it did.
    pub(crate) panic: Option<String>,
}

impl Console {
    /// Takes the next line. Returns the section that it closes.
    pub(crate) fn line(&mut self, line: &str) -> Option<&Section> {
        if let Some(mark) = line.strip_prefix(MARK) {
            return self.mark(mark);
        }
        if line.contains("Kernel panic - ") && self.panic.is_none() {
            self.panic = Some(line.to_owned());
        }
        if let Some(section) = self.sections.last_mut().filter(|last| last.code.is_none()) {
            section.lines.push(line.to_owned());
        }
        None
    }

    fn mark(&mut self, mark: &str) -> Option<&Section> {
        let words: Vec<&str> = mark.split(' ').collect();
        match words[..] {
            ["kernel", release] => self.release = Some(release.to_owned()),
            ["begin", name] => self.sections.push(Section {
                name: name.to_owned(),
                ..Section::default()
            }),
            ["end", name, code] => {
                let section = self.sections.last_mut()?;
                if section.name == name {
                    section.code = code.parse().ok();
                    return Some(section);
                }
            }
            ["cut", name] => self.cut.push(name.to_owned()),
            ["late", name] => self.late.push(name.to_owned()),
            ["done"] => self.is_done = true,
            _ => {}
        }
        None
    }

    /// Returns the section of this name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

/// What the tests of one module said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    /// How many tests ended how.
    pub(crate) counts: Counts,
    /// Each failed test, and the first line of why.
    pub(crate) failed: Vec<(String, String)>,
    /// Each test that could not be done there, and why.
    pub(crate) skipped: Vec<(String, String)>,
}

impl Tests {
    /// Reads the section of a module. One that ended without a verdict has failed, unless it was
    /// cut off.
    pub(crate) fn read(module: &str, section: &Section, is_cut: bool) -> Self {
        let mut tests = Self::default();
        for line in &section.lines {
            tests.result(line);
        }
        tests.reasons(&section.lines);
        let verdict = section.lines.iter().find_map(|line| Counts::parse(line));
        if let Some(counts) = verdict {
            tests.counts = counts;
        }
        // The verdict may be there and the end not, and the other way round.
        let is_at_end = verdict.is_some() && (section.code == Some(0) || tests.counts.failed > 0);
        if !is_at_end && !is_cut {
            tests.counts.failed += 1;
            let why = stopped(section);
            tests
                .failed
                .push((format!("{module} (not at its end)"), why));
        }
        // What is skipped is not passed.
        let skipped = u64::try_from(tests.skipped.len()).unwrap_or_default();
        tests.counts.passed = tests.counts.passed.saturating_sub(skipped);
        tests
    }

    /// Reads a line about the end of one test: for a process that does not live to count itself.
    fn result(&mut self, line: &str) {
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        match result {
            "ok" => self.counts.passed += 1,
            "FAILED" => {
                self.counts.failed += 1;
                self.failed.push((name.to_owned(), String::new()));
            }
            _ => {}
        }
    }

    /// Takes up what the tests themselves printed, shown after all have run: under `successes:` why
    /// one was skipped (panics there were expected), under `failures:` why one panicked.
    fn reasons(&mut self, lines: &[String]) {
        let mut of = "";
        let mut is_panic = false;
        for line in lines {
            let title = line.strip_prefix("---- ");
            if let Some((name, _)) = title.and_then(|rest| rest.split_once(" std")) {
                of = name;
            } else if let Some(reason) = line.strip_prefix("skipped: ") {
                self.skipped.push((of.to_owned(), reason.to_owned()));
            } else if is_panic && let Some(failed) = self.failed_of(of) {
                failed.clone_from(line);
            }
            is_panic = line.starts_with("thread '") && line.contains(" panicked at ");
        }
    }

    /// Returns the place for why a test failed, when it did and that is not known yet.
    fn failed_of(&mut self, test: &str) -> Option<&mut String> {
        let mut failed = self.failed.iter_mut();
        let (_, why) = failed.find(|(name, why)| name == test && why.is_empty())?;
        Some(why)
    }
}

/// Returns why a section without a verdict has none.
fn stopped(section: &Section) -> String {
    let how = match section.code {
        Some(137) => "ended at its time limit".to_owned(),
        Some(code) => format!("ended with code {code}"),
        None => "the guest ended first".to_owned(),
    };
    let last = section
        .lines
        .iter()
        .rev()
        .find(|line| !line.trim().is_empty());
    last.map_or(how.clone(), |last| {
        format!("{how}, after `{}`", last.trim())
    })
}

/// One check of `lifemon doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: String,
    /// `ok`, `degraded`, `failed` or `skipped`.
    pub(crate) state: String,
    /// What was found.
    pub(crate) detail: String,
}

/// Returns the checks in the doctor's section.
pub(crate) fn checks(section: &Section) -> Vec<Check> {
    let text = section.lines.join("\n");
    let report: Value = serde_json::from_str(text.trim()).unwrap_or_default();
    let checks = report["checks"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    checks
        .map(|check| Check {
            name: text(&check["name"]),
            state: text(&check["state"]),
            detail: text(&check["detail"]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        for line in text.lines() {
            console.line(line);
        }
        console
    }

    fn section(text: &str, code: Option<i32>) -> Section {
        Section {
            name: "test-deaths".to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            code,
        }
    }

    #[test]
    fn sections_have_their_lines_and_codes() {
        let console = console(
            "BIOS\n@@vmtest kernel 6.1.0\n@@vmtest begin doctor\n{}\n@@vmtest end doctor 0\n\
             between\n@@vmtest begin test-a\nrunning\n",
        );
        assert_eq!(console.release.as_deref(), Some("6.1.0"));
        let doctor = console.section("doctor").expect("there");
        assert_eq!(
            (&doctor.lines[..], doctor.code),
            (&["{}".to_owned()][..], Some(0))
        );
        let test = console.section("test-a").expect("there");
        assert_eq!(
            (&test.lines[..], test.code),
            (&["running".to_owned()][..], None)
        );
        assert!(!console.is_done);
    }

    #[test]
    fn what_there_was_no_time_for_is_named() {
        let console =
            console("@@vmtest begin test-a\n@@vmtest end test-a 0\n@@vmtest late test-b\n");
        assert_eq!(console.late, ["test-b"]);
        assert_eq!(console.sections.len(), 1);
    }

    #[test]
    fn a_dead_kernel_says_why() {
        let console = console("[ 4.7] Kernel panic - not syncing: Fatal exception\n@@vmtest done");
        assert!(
            console
                .panic
                .is_some_and(|line| line.ends_with("Fatal exception"))
        );
        assert!(console.is_done);
    }

    #[test]
    fn failures_and_skips_are_named_with_their_reasons() {
        let text = "\
running 4 tests
test a ... ok
test b ... FAILED
test c ... ok
test d - should panic ... ok

successes:

---- c stdout ----
skipped: no io_uring

---- d stdout ----
thread 'd' (11) panicked at tests/src/story.rs:1:1:
as expected

failures:

---- b stdout ----

thread 'b' (12) panicked at tests/e2e/deaths.rs:7:5:
no exit came
note: run with `RUST_BACKTRACE=1`

failures:
    b

test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        let tests = Tests::read("deaths", &section(text, Some(101)), false);
        assert_eq!(tests.failed, [("b".to_owned(), "no exit came".to_owned())]);
        assert_eq!(tests.skipped, [("c".to_owned(), "no io_uring".to_owned())]);
        assert_eq!(tests.counts.to_string(), "2 passed, 1 failed");
    }

    #[test]
    fn one_that_hung_has_failed_and_what_passed_before_counts() {
        let text = "running 3 tests\ntest a ... ok\ntest b ... ";
        let tests = Tests::read("deaths", &section(text, Some(137)), false);
        assert_eq!(tests.counts.to_string(), "1 passed, 1 failed");
        let (_, reason) = &tests.failed[0];
        assert_eq!(reason, "ended at its time limit, after `test b ...`");
        let tests = Tests::read("deaths", &section(text, None), false);
        assert!(tests.failed[0].1.starts_with("the guest ended first"));
        let tests = Tests::read("deaths", &section(text, Some(137)), true);
        assert_eq!(tests.counts.to_string(), "1 passed, 0 failed");
        let bad = text.replace("test a ... ok", "test a ... FAILED");
        let tests = Tests::read("deaths", &section(&bad, Some(137)), true);
        assert_eq!(tests.counts.to_string(), "0 passed, 1 failed");
    }

    #[test]
    fn the_doctor_is_read() {
        let text = r#"{"checks":[{"name":"exit event","state":"degraded","detail":"late"}]}"#;
        let checks = checks(&section(text, Some(0)));
        assert_eq!(
            (checks[0].name.as_str(), checks[0].state.as_str()),
            ("exit event", "degraded")
        );
        assert_eq!(super::checks(&section("garbage", Some(3))), []);
    }
}

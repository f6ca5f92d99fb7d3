//! `lifemon doctor`: prints the checks of [`crate::doctor`], with a remedy for each that fails.

use serde::Serialize;

use super::{Code, Output};
use crate::doctor::{self, Check, State};
use crate::report::json::SCHEMA;
use crate::report::out;

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    ok: bool,
    version: &'static str,
    kernel: String,
    checks: Vec<Check>,
}

pub(super) fn run(output: Output) -> anyhow::Result<Code> {
    let checks = doctor::examine();
    let ok = !checks.iter().any(|check| check.state == State::Failed);
    let code = if ok { Code::Done } else { Code::No };
    let text = match output {
        Output::Text => describe(&checks, out::wants_colour()),
        Output::Json => {
            let kernel = crate::kernel::preflight::kernel_release();
            let report = Report {
                schema: SCHEMA,
                ok,
                version: super::VERSION,
                kernel,
                checks,
            };
            format!("{}\n", serde_json::to_string(&report)?)
        }
    };
    out::print(&text)?;
    Ok(code)
}

fn describe(checks: &[Check], colour: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, code) = match check.state {
            State::Ok => ("ok", "32"),
            State::Degraded => ("degraded", "33"),
            State::Failed => ("failed", "31"),
            State::Skipped => ("skipped", "2"),
        };
        let padded = format!("{word:<9}");
        let word = if colour {
            format!("\x1b[{code}m{padded}\x1b[0m")
        } else {
            padded
        };
        text.push_str(&format!("{word} {:<14} {}\n", check.name, check.detail));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:25}-> {remedy}\n", ""));
        }
    }
    text
}

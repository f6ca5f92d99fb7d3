//! `lifemon doctor`: prints the checks of [`crate::doctor`], with a remedy for each that fails.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Code, Output};
use crate::doctor::{self, Check, State};
use crate::report::json::SCHEMA;
use crate::report::out::{self, Tone, printable};

#[derive(Serialize, JsonSchema)]
pub(crate) struct Report {
    #[schemars(extend("const" = SCHEMA))]
    schema: &'static str,
    #[schemars(extend("const" = "doctor"))]
    kind: &'static str,
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
        _ if output.is_text() => describe(&checks, out::wants_colour()),
        _ => {
            let kernel = crate::kernel::preflight::kernel_release();
            let report = Report {
                schema: SCHEMA,
                kind: "doctor",
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
        let (word, tone) = match check.state {
            State::Ok => ("ok", Tone::Good),
            State::Degraded => ("degraded", Tone::Warn),
            State::Failed => ("failed", Tone::Bad),
            State::Skipped => ("skipped", Tone::Faint),
        };
        let word = out::paint(colour, tone, &format!("{word:<9}"));
        let detail = printable(&check.detail);
        text.push_str(&format!("{word} {:<14} {detail}\n", check.name));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:25}-> {}\n", "", printable(remedy)));
        }
    }
    text
}

//! `lifemon wait` through the node agent. Each request to that has a limit; a wait without one asks
//! again, for exactly the same processes, until the condition holds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Args;
use crate::cli::refusal::{is_missing, refusal, shown};
use crate::cli::{Code, Output};
use crate::client::{Answer, Client};
use crate::report::{out, wait as report};
use crate::wait::{Until, Waited};

/// The longest wait of the agent.
const LONGEST: Duration = Duration::from_hours(24);
/// A wait that came to nothing and was shorter is not asked for again: the agent does not wait.
const SHORTEST: Duration = Duration::from_secs(1);

/// A wait that the agent is asked for.
pub(in crate::cli) struct Wait {
    processes: Vec<String>,
    until: Until,
    limit: Option<Duration>,
}

impl Args {
    /// Returns what the agent is asked for; `None` where it has options that the agent does not
    /// know.
    pub(in crate::cli) fn asked(&self) -> Option<Wait> {
        if self.gpus.are_chosen() {
            return None;
        }
        let processes = self.targets.iter().map(|target| target.for_agent());
        Some(Wait {
            processes: processes.collect::<Option<_>>()?,
            until: self.until,
            limit: self.timeout,
        })
    }
}

impl Wait {
    /// Asks the agent to wait for these processes, for as long as both want.
    fn ask(
        &self,
        client: &mut Client,
        processes: &[String],
        begun: Instant,
    ) -> anyhow::Result<Answer> {
        let left = self
            .limit
            .map(|limit| limit.saturating_sub(begun.elapsed()));
        let limit = left.map_or(LONGEST, |left| left.min(LONGEST));
        let body = json!({
            "processes": processes,
            "until": self.until,
            "timeout": format!("{}ms", limit.as_millis()),
        });
        Ok(client.ask("POST", "/v1/wait", &[], &body.to_string())?)
    }

    /// Returns whether it goes on after this answer: only the agent's time was over.
    fn goes_on(&self, waited: &Waited, begun: Instant) -> bool {
        let is_over = self.limit.is_some_and(|limit| begun.elapsed() >= limit);
        !waited.holds && waited.trouble.is_none() && !is_over && waited.elapsed >= SHORTEST
    }
}

/// Waits, and prints what came of it.
///
/// # Errors
/// Whatever the agent answers instead.
pub(in crate::cli) fn run(
    client: &mut Client,
    wait: &Wait,
    output: Output,
) -> anyhow::Result<Code> {
    let begun = Instant::now();
    let mut processes = wait.processes.clone();
    // The last answer after which it went on: from then on the processes are known.
    let mut before: Option<Value> = None;
    loop {
        let answer = wait.ask(client, &processes, begun)?;
        if answer.is_granted() {
            let waited = report::read(&answer.body)?;
            if wait.goes_on(&waited, begun) {
                let names = waited.targets.iter();
                let names =
                    names.map(|process| format!("{}@{}", process.id.pid, process.id.start_ns));
                processes = names.collect();
                before = Some(answer.json());
                continue;
            }
            if before.is_none() {
                return print(&answer.body, output);
            }
            return print(&after(answer.json(), begun), output);
        }
        // Race: between two requests one of them can die, and nothing be left of its tree. That is
        // the end that was waited for; what a driver accounts to it nobody can say any more.
        let is_end = is_missing(&answer) && wait.until != Until::Released;
        let Some(last) = before.as_ref().filter(|_| is_end) else {
            return Err(refusal(&answer));
        };
        let left = still_there(client, &processes)?;
        if left.len() == processes.len() {
            return Err(refusal(&answer));
        }
        if left.is_empty() || wait.until == Until::AnyExit {
            let mut last = last.clone();
            last["holds"] = true.into();
            if left.is_empty() {
                last["alive"] = 0.into();
            }
            return print(&after(last, begun), output);
        }
        processes = left;
    }
}

/// Returns those of which something is known still.
fn still_there(client: &mut Client, processes: &[String]) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for name in processes {
        let answer = client.ask("GET", &format!("/v1/tree/{name}"), &[], "")?;
        if !is_missing(&answer) {
            left.push(name.clone());
        }
    }
    Ok(left)
}

/// Returns an answer with the time of the whole wait.
fn after(mut answer: Value, begun: Instant) -> String {
    answer["elapsed_ms"] = (begun.elapsed().as_secs_f64() * 1e3).into();
    format!("{answer}\n")
}

fn print(body: &str, output: Output) -> anyhow::Result<Code> {
    let waited = report::read(body)?;
    out::print(&match output {
        Output::Json => shown(body, output),
        _ => report::text(&waited, out::wants_colour()),
    })?;
    Ok(if waited.holds { Code::Done } else { Code::No })
}

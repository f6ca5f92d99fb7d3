//! Who answers a command: this process, or the node agent. Whoever may open the tracker works
//! locally; everybody else asks the agent, where there is one.

use std::io::ErrorKind;

use serde_json::{Value, json};

use super::attach::told::{self, Told};
use super::refusal::{NoAgent, refusal, shown};
use super::wait::asked::{self as wait, Wait};
use super::{Cli, Code, Command, Output, Usage};
use crate::client::{Client, socket};
use crate::kernel::preflight;
use crate::proc;
use crate::report::out;

/// The inode of the initial pid namespace:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/linux/proc_ns.h?h=v6.12.118#n45>.
const HOST_PIDS: u64 = 0xEFFF_FFFC;

/// A request that stands for a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: Option<Value>,
}

impl Request {
    /// Gets a resource.
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            body: None,
        }
    }

    /// Posts an object.
    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self {
            method: "POST",
            path: path.into(),
            body: Some(body),
        }
    }
}

/// What the agent is asked for.
enum Asked {
    /// Answers.
    Answers(Vec<Request>),
    /// The end of processes.
    Wait(Wait),
    /// The events of a tree.
    Events(Told),
}

/// Lets the agent answer, if it is to; `None` where the command is done here.
///
/// # Errors
/// Whatever the agent answers instead, and when it was asked for and is not there.
pub(super) fn answer(cli: &Cli) -> anyhow::Result<Option<Code>> {
    if cli.local || (!cli.agent && preflight::check_privileges().is_ok()) {
        return Ok(None);
    }
    let Some(asked) = asked(cli) else {
        if cli.agent {
            let what = "the agent cannot be asked for this; leave out --agent, or some options";
            return Err(Usage(what.to_owned()).into());
        }
        return Ok(None);
    };
    let mut client = match Client::connect(None) {
        Ok(client) => client,
        // Then the command says itself what is missing.
        Err(_) if !cli.agent => return Ok(None),
        Err(error) => {
            let path = socket();
            let why = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    "no agent listens: start one (`lifemon agent`), or use --local".to_owned()
                }
                _ => error.to_string(),
            };
            return Err(NoAgent(format!("{}: {why}", path.display())).into());
        }
    };
    let code = match asked {
        Asked::Answers(requests) => run(client, &requests, cli.output),
        Asked::Wait(wait) => wait::run(&mut client, &wait, cli.output),
        Asked::Events(told) => told::run(client, told, cli.output),
    };
    code.map(Some)
}

/// Returns what the agent is to be asked for; `None` where it does not know what this user wants.
fn asked(cli: &Cli) -> Option<Asked> {
    if !matches!(cli.output, Output::Text | Output::Json) || cli.inside.is_some() {
        return None;
    }
    let requests = match &cli.command {
        Command::Attach(args) => return args.told().map(Asked::Events),
        Command::Wait(args) => return args.asked().map(Asked::Wait),
        Command::Tree(args) => args.requests(),
        Command::Orphans(args) => args.requests(),
        Command::Gpu(args) => args.requests(),
        Command::Kill(args) => args.requests(),
        Command::Explain(args) => args.requests(),
        Command::Log(args) => args.requests(),
        _ => None,
    };
    requests.map(Asked::Answers)
}

fn run(mut client: Client, requests: &[Request], output: Output) -> anyhow::Result<Code> {
    let mut code = Code::Done;
    for request in requests {
        let body = request.body.as_ref().map(Value::to_string);
        let body = body.as_deref().unwrap_or_default();
        let is_get = request.method == "GET";
        let text = ["accept: text/plain"];
        let headers: &[&str] = if is_get && output == Output::Text {
            &text
        } else {
            &[]
        };
        let path = if is_get && output == Output::Text && out::wants_colour() {
            let mark = if request.path.contains('?') { '&' } else { '?' };
            format!("{}{mark}colour=true", request.path)
        } else {
            request.path.clone()
        };
        let answer = client.ask(request.method, &path, headers, body)?;
        if !answer.is_granted() {
            return Err(refusal(&answer));
        }
        if is_get {
            out::print(&shown(&answer.body, output))?;
            continue;
        }
        let report = answer.json();
        if report["dry_run"] != true && !is_done(&report) {
            code = Code::No;
        }
        match output {
            Output::Json => out::print(&shown(&answer.body, output))?,
            Output::Text | Output::Name | Output::Wide => {
                let id = report["id"].as_str().unwrap_or_default();
                let path = format!("/v1/kills/{id}");
                let text = client.ask("GET", &path, &text, "")?;
                out::print(&text.body)?;
            }
        }
    }
    Ok(code)
}

/// Returns whether a kill has left nothing that was to end.
fn is_done(report: &Value) -> bool {
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let suspects = report["suspects"].as_array();
    let is_killed = |suspect: &Value| suspect["killed"] == true;
    report["extinct"] == true
        && is_empty(&report["survivors"])
        && suspects.is_none_or(|suspects| suspects.iter().all(is_killed))
}

/// Returns a target as the agent takes it. A pid alone is made exact here, as long as it is the
/// host's: between this look and the agent's it can become another process's.
pub(super) fn named(pid: u32, start_ns: Option<u64>) -> Option<String> {
    let exact = |id: crate::ProcessId| format!("{}@{}", id.pid, id.start_ns);
    if let Some(start_ns) = start_ns {
        return Some(exact(crate::ProcessId::new(pid, start_ns)));
    }
    if !proc::is_ours() {
        return None;
    }
    let is_host = proc::namespaces(std::process::id()).is_some_and(|own| own.pid == HOST_PIDS);
    let found = proc::identify(pid).filter(|_| is_host).map(exact);
    Some(found.unwrap_or_else(|| format!("ns:{pid}")))
}

/// Returns the body of a kill.
pub(super) fn kill_body(
    process: &str,
    options: &[(&str, Option<String>)],
    dry_run: bool,
    force: bool,
) -> Value {
    let mut body = json!({"process": process, "dry_run": dry_run, "force": force});
    for (name, value) in options {
        if let Some(value) = value {
            body[*name] = value.clone().into();
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_done_when_nothing_is_left() {
        assert!(is_done(&json!({"extinct": true, "survivors": []})));
        assert!(!is_done(&json!({"extinct": true, "survivors": [1]})));
        assert!(!is_done(&json!({"extinct": false, "survivors": []})));
        let suspects = json!([{"killed": false}]);
        assert!(!is_done(
            &json!({"extinct": true, "survivors": [], "suspects": suspects})
        ));
    }
}

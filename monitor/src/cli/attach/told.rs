//! `lifemon attach` through the node agent: a watch that ends with this process's connection, and
//! the stream of its events.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream as Blocking;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, Lines};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Args, at};
use crate::cli::refusal::refusal;
use crate::cli::{Code, Interrupts, Output};
use crate::client::Client;
use crate::gpu::release::RELEASE_TIMEOUT;
use crate::kernel::{LoadOptions, WatchOptions};
use crate::loss::Loss;
use crate::report::out;
use crate::report::stream::Retold;
use crate::sys::runtime::current_thread;

/// The time for the agent to tell the end of a watch that was ended here.
const CLOSING: Duration = Duration::from_secs(5);
/// Lines that are the stream's own, and nothing of the tree.
const FRAME: [&str; 3] = ["heartbeat", "ready", "resumed"];

/// What the agent is asked to watch.
pub(in crate::cli) struct Told {
    process: String,
    events: Vec<&'static str>,
    period: Option<Duration>,
}

impl Args {
    /// Returns what the agent is asked for; `None` where it has options that the agent does not
    /// know.
    pub(in crate::cli) fn told(&self) -> Option<Told> {
        let is_known = !self.kill_on_root_exit
            && !self.gpus.are_chosen()
            && !self.without_group_dead
            && !self.preemptible
            && self.ring_size == WatchOptions::default().ring_bytes
            && self.max_processes == LoadOptions::default().max_processes
            && self.release_timeout == RELEASE_TIMEOUT
            && !self
                .events
                .iter()
                .any(|event| matches!(*event, "released" | "held"));
        if !is_known {
            return None;
        }
        Some(Told {
            process: self.target.for_agent()?,
            events: self.events.clone(),
            period: self.period,
        })
    }
}

/// Shows what the agent tells, until nothing of the tree is left, the time is over or a signal
/// comes.
pub(in crate::cli) fn run(client: Client, told: Told, output: Output) -> anyhow::Result<Code> {
    current_thread()?.block_on(follow(client, told, output))
}

async fn follow(client: Client, told: Told, output: Output) -> anyhow::Result<Code> {
    let mut interrupts = Interrupts::listen()?;
    let deadline = told.period.map(|period| Instant::now() + period);
    // The agent may take a while to answer, and a signal ends that wait as well: what the agent
    // has begun by then ends with the connections, which end with this process.
    let begun = tokio::select! {
        begun = on_a_thread(move || begin(client, &told))? => begun?,
        () = interrupts.next() => return Ok(Code::Done),
        () = at(deadline) => return Ok(Code::Done),
    };
    let mut lines = lines(begun.events)?;
    let mut shown = Shown::new(begun.tree, output);
    let mut watch = Some(begun.watch);
    let mut closing = None;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let ended = || anyhow::anyhow!("the agent has ended; nothing is known from here on");
                let line = line?.ok_or_else(ended)?;
                if let Some(code) = shown.show(&line)? {
                    return Ok(code);
                }
                continue;
            }
            () = interrupts.next(), if watch.is_some() => {}
            () = at(deadline), if watch.is_some() => {}
            () = at(closing) => anyhow::bail!("the agent does not answer"),
        }
        // It ends with its connection; what comes until that is told belongs to it.
        watch = None;
        closing = Some(Instant::now() + CLOSING);
    }
}

/// A watch that the agent has begun.
struct Begun {
    /// The connection that it ends with.
    watch: Client,
    tree: Value,
    events: BufReader<Blocking>,
}

/// Lets the agent begin to watch, and asks for the events.
fn begin(mut client: Client, told: &Told) -> anyhow::Result<Begun> {
    let body = json!({"process": told.process, "on_disconnect": true});
    let made = client.ask("POST", "/v1/watches", &[], &body.to_string())?;
    if !made.is_granted() {
        return Err(refusal(&made));
    }
    let mut made = made.json();
    let word = |name: &str| made[name].as_str().unwrap_or_default();
    let (id, after) = (word("id"), word("after"));
    let mut path = format!("/v1/events?watch={id}&after={after}");
    if !told.events.is_empty() {
        path = format!("{path}&type={}", told.events.join(","));
    }
    let events = Client::connect(None)?.stream(&path)?;
    Ok(Begun {
        watch: client,
        tree: made["tree"].take(),
        events: events.map_err(|answer| refusal(&answer))?,
    })
}

/// Does what waits for the agent on a thread, whose end nobody has to wait for.
fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> io::Result<impl Future<Output = anyhow::Result<T>>> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        let _ = done.send(work());
    })?;
    Ok(async { result.await? })
}

/// Reads lines from where a blocking reader has come to.
fn lines(from: BufReader<Blocking>) -> io::Result<Lines<impl AsyncBufRead + Unpin>> {
    let begun = io::Cursor::new(from.buffer().to_vec());
    let stream = from.into_inner();
    stream.set_nonblocking(true)?;
    let stream = tokio::io::BufReader::new(UnixStream::from_std(stream)?);
    Ok(begun.chain(stream).lines())
}

/// Lines of the agent, as they are shown.
struct Shown {
    output: Output,
    tree: Value,
    seq: u64,
    retold: Retold,
}

impl Shown {
    fn new(tree: Value, output: Output) -> Self {
        let retold = Retold::text(out::wants_colour());
        Self {
            output,
            tree,
            seq: 0,
            retold,
        }
    }

    /// Prints a line; returns the exit code with the last one.
    fn show(&mut self, line: &str) -> anyhow::Result<Option<Code>> {
        let line: Value = serde_json::from_str(line)?;
        let event = line["event"].as_str().unwrap_or_default();
        if FRAME.contains(&event) {
            return Ok(None);
        }
        let end = (event == "detached").then(|| code(&line));
        out::print(&match self.output {
            Output::Json => self.json(line),
            _ => self.retold.line(&line)?,
        })?;
        Ok(end)
    }

    /// Returns a line as `attach` prints it here, and who has told it.
    fn json(&mut self, mut line: Value) -> String {
        self.seq += 1;
        if let Some(fields) = line.as_object_mut() {
            fields.remove("id");
            fields.insert("kind".to_owned(), "event".into());
            fields.insert("seq".to_owned(), self.seq.into());
            fields.insert("tree".to_owned(), self.tree.clone());
            fields.insert("answered_by".to_owned(), "agent".into());
        }
        line.to_string() + "\n"
    }
}

/// Returns the exit code at the end: whether the end was seen.
fn code(detached: &Value) -> Code {
    let losses = detached["incomplete"].as_array();
    let is_cut_off = |loss: &Value| loss["reason"] == Loss::SwitchedOff.word();
    let cut_off = losses.is_some_and(|losses| losses.iter().any(is_cut_off));
    if cut_off || detached["summary"].is_null() {
        Code::No
    } else {
        Code::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_shape_of_those_that_are_printed_without_the_agent() {
        let mut shown = Shown::new(json!({"pid": 7, "start_ns": 9}), Output::Json);
        let told = json!({"event": "lost", "reason": "slow_reader", "id": "a:1"});
        let line: Value = serde_json::from_str(&shown.json(told)).unwrap();
        assert_eq!(
            line,
            json!({
                "kind": "event", "event": "lost", "seq": 1, "reason": "slow_reader",
                "tree": {"pid": 7, "start_ns": 9}, "answered_by": "agent",
            })
        );
    }

    #[test]
    fn an_end_that_was_not_seen_is_a_no() {
        let summary = json!({"seen": 1});
        for (detached, expected) in [
            (json!({"summary": summary}), Code::Done),
            (json!({"complete": false}), Code::No),
            (
                json!({"summary": summary, "incomplete": [{"reason": "no_history"}]}),
                Code::Done,
            ),
            (
                json!({"summary": summary, "incomplete": [{"reason": "switched_off"}]}),
                Code::No,
            ),
        ] {
            assert_eq!(code(&detached), expected, "{detached}");
        }
    }
}

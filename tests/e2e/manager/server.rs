//! The example server under test, and what a client of it needs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use lifemon_tests::handicap::as_nobody;
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::reports::{ConnectionFailure, Health, Rest, read};
use lifemon_tests::{DEADLINE, Finished, Lifemon, Pidfd, Sandbox, Stream, wait_until};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A running server. Its output is its own and that of its workers.
pub(crate) struct Server {
    stream: Stream<Value>,
    started: Started,
}

/// What it prints when it listens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Started {
    port: u16,
    workers: Vec<i32>,
    engines: Vec<i32>,
    guardian: i32,
}

/// The answer of a worker to a prompt.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Generated {
    pub(crate) text: String,
}

/// The processes that were left behind and have been killed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cleaned {
    pub(crate) cleaned: Vec<i32>,
}

impl Server {
    /// Starts it with these options, and these words for its workers.
    #[track_caller]
    pub(crate) fn start(sandbox: &Sandbox, options: &[&str], worker: &[&str]) -> Self {
        let mut server = Self::begin(sandbox, options, worker);
        server.wait_until_started();
        server
    }

    /// Does the same, without waiting until it listens.
    #[track_caller]
    pub(crate) fn begin(sandbox: &Sandbox, options: &[&str], worker: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_server"));
        Self::run(sandbox, program, options, worker, |_| {})
    }

    /// Does the same as a user without any right.
    #[track_caller]
    pub(crate) fn start_as_nobody(sandbox: &Sandbox, options: &[&str]) -> Self {
        let program = copy(sandbox, Path::new(env!("CARGO_BIN_EXE_server")), "server");
        let mut server = Self::run(sandbox, Path::new(&program), options, &[], as_nobody);
        server.wait_until_started();
        server
    }

    /// Does the same, beside an agent with this socket; with these words before the program.
    #[track_caller]
    pub(crate) fn start_beside(sandbox: &Sandbox, agent: &Path, before: &[&str]) -> Self {
        let program = copy(sandbox, Path::new(env!("CARGO_BIN_EXE_server")), "server");
        let (first, rest) = match before.split_first() {
            Some((first, rest)) => (*first, [rest, &[&program]].concat()),
            None => (program.as_str(), Vec::new()),
        };
        let change = |command: &mut Command| {
            command.env("LIFEMON_AGENT", agent);
            as_nobody(command);
        };
        let mut server = Self::run(sandbox, Path::new(first), &rest, &[], change);
        server.wait_until_started();
        server
    }

    #[track_caller]
    fn run(
        sandbox: &Sandbox,
        program: &Path,
        options: &[&str],
        worker: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let copy = |from: &Path, name| copy(sandbox, from, name);
        let example = root.join("../monitor/examples/worker.py");
        copy(&example, "example_worker.py");
        let script = copy(&root.join("src/worker.py"), "worker.py");
        let command = ["python3", &script];
        let words = options.iter().chain(&command).chain(worker);
        let lifemon = Lifemon::at(program.to_owned()).inside(sandbox);
        let mut command = lifemon.command(words);
        change(&mut command);
        let child = command.spawn().expect("the server starts");
        Self {
            stream: Stream::new(format!("{command:?}"), child),
            started: Started::default(),
        }
    }

    #[track_caller]
    fn wait_until_started(&mut self) {
        let started = |line: &Value| line["port"].is_u64();
        self.started = read(&self.stream.wait_for("the first line", started));
    }

    pub(crate) fn port(&self) -> u16 {
        self.started.port
    }

    pub(crate) fn workers(&self) -> Vec<i32> {
        self.started.workers.clone()
    }

    /// Returns what each worker has started, in the same order.
    pub(crate) fn engines(&self) -> Vec<i32> {
        self.started.engines.clone()
    }

    pub(crate) fn guardian(&self) -> i32 {
        self.started.guardian
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        get(self.port(), path)
    }

    /// Returns the health status, and the code that it came with.
    #[track_caller]
    pub(crate) fn health(&self) -> (u16, Health) {
        self.ask("/health")
    }

    /// Returns the text that a worker answers with, which it must.
    #[track_caller]
    pub(crate) fn generate(&self, query: &str) -> String {
        let (code, answer) = self.ask::<Generated>(&format!("/generate?{query}"));
        assert_eq!(code, 200, "{answer:?}");
        answer.text
    }

    /// Returns what a cleanup has killed.
    #[track_caller]
    pub(crate) fn cleanup(&self) -> Vec<i32> {
        let (code, answer) = self.ask::<Cleaned>("/cleanup");
        assert_eq!(code, 200, "{answer:?}");
        answer.cleaned
    }

    #[track_caller]
    fn ask<T: DeserializeOwned>(&self, path: &str) -> (u16, T) {
        let (code, answer) = self.get(path);
        (code, read(&answer))
    }

    /// Waits until the status says that workers are watched in this way.
    #[track_caller]
    pub(crate) fn wait_for_way(&self, way: &str) {
        wait_until("the way", DEADLINE, || self.health().1.way == way);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let server = Pidfd::open(self.stream.pid()).expect("the server lives");
        server.signal(signal).expect("the server lives");
    }

    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.stream.wait_for(what, fits)
    }

    pub(crate) fn kill_worker(&self, index: usize) {
        Pidfd::open(self.workers()[index]).expect("it lives").kill();
    }

    /// Waits until the server says that so many processes are left behind; returns what it says
    /// then.
    #[track_caller]
    pub(crate) fn wait_for_orphans(&self, count: usize) -> Health {
        let mut health = None;
        wait_until("the orphans", DEADLINE, || {
            let (_, now) = self.health();
            health = Some(now).filter(|now| now.orphans.len() == count);
            health.is_some()
        });
        health.expect("waited for")
    }

    #[track_caller]
    pub(crate) fn finish(self) -> Finished<Value> {
        self.stream.finish()
    }

    /// Waits for its end with this code, after which nobody of it is left.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32, sandbox: &Sandbox) -> Finished<Value> {
        let finished = self.finish();
        assert_eq!(finished.code, Some(code), "{finished:?}");
        // What became of the rest is its last line, once it has served.
        for line in finished
            .events
            .iter()
            .filter(|line| line["way"].is_string())
        {
            let rest: Rest = read(line);
            assert_eq!(rest.survivors, [], "{rest:?}");
        }
        assert_nobody(sandbox);
        finished
    }

    /// Asks it to end, which it does with 0 and with nobody left.
    #[track_caller]
    pub(crate) fn stops(self, sandbox: &Sandbox) -> Finished<Value> {
        self.signal(Signal::SIGTERM);
        self.ends_with(0, sandbox)
    }
}

/// Makes a copy that everybody may read.
#[track_caller]
fn copy(sandbox: &Sandbox, from: &Path, name: &str) -> String {
    let to = sandbox.directory().join(name);
    let mut install = Command::new("install");
    let copied = install.args(["-m", "755"]).arg(from).arg(&to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{install:?}");
    to.to_str().expect("a path in UTF-8").to_owned()
}

/// Claims that an answer is a failure of this kind, and returns it.
#[track_caller]
pub(crate) fn assert_fails((code, answer): &(u16, Value), kind: &str) -> ConnectionFailure {
    assert_eq!(*code, 500, "{answer}");
    let failure: ConnectionFailure = read(answer);
    assert_eq!(failure.kind, kind, "{failure:?}");
    failure
}

/// Makes one request; returns the code and the JSON of the answer.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> (u16, Value) {
    request(port, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// Sends one prompt, as large as it may be.
#[track_caller]
pub(crate) fn post(port: u16, prompt: &Value) -> (u16, Value) {
    let head = "POST /generate HTTP/1.1\r\nContent-Type: application/json\r\n";
    request(port, head, &prompt.to_string())
}

#[track_caller]
fn request(port: u16, head: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
    let length = body.len();
    let rest = format!("Host: server\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let request = [head, &rest, body].concat();
    stream
        .write_all(request.as_bytes())
        .expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (code.expect("a status line"), body)
}

//! The example server under test, and what a client of it needs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use lifemon_tests::handicap::as_nobody;
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Finished, Lifemon, Pidfd, Sandbox, Stream, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A running server.
pub(crate) struct Server {
    stream: Stream,
    started: Value,
}

impl Server {
    /// With these options, and these words for its workers.
    #[track_caller]
    pub(crate) fn start(sandbox: &Sandbox, options: &[&str], worker: &[&str]) -> Self {
        let mut server = Self::begin(sandbox, options, worker);
        server.wait_until_started();
        server
    }

    /// The same, without waiting until it listens.
    #[track_caller]
    pub(crate) fn begin(sandbox: &Sandbox, options: &[&str], worker: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_server"));
        Self::run(sandbox, program, options, worker, |_| {})
    }

    /// The same as a user without any right.
    #[track_caller]
    pub(crate) fn start_as_nobody(sandbox: &Sandbox, options: &[&str]) -> Self {
        let program = copy(sandbox, Path::new(env!("CARGO_BIN_EXE_server")), "server");
        let mut server = Self::run(sandbox, Path::new(&program), options, &[], as_nobody);
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
            started: Value::Null,
        }
    }

    #[track_caller]
    fn wait_until_started(&mut self) {
        let started = |line: &Value| line["port"].is_u64();
        self.started = self.stream.wait_for("the first line", started);
    }

    pub(crate) fn port(&self) -> u16 {
        let port = self.started["port"].as_u64().expect("a port");
        u16::try_from(port).expect("a port")
    }

    pub(crate) fn workers(&self) -> Vec<i32> {
        let workers = self.started["workers"].as_array().expect("a list");
        workers.iter().map(pid).collect()
    }

    /// What each worker has started, in the same order.
    pub(crate) fn engines(&self) -> Vec<i32> {
        let engines = self.started["engines"].as_array().expect("a list");
        engines.iter().map(pid).collect()
    }

    pub(crate) fn guardian(&self) -> i32 {
        pid(&self.started["guardian"])
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        get(self.port(), path)
    }

    /// Until the status says that workers are watched in this way.
    #[track_caller]
    pub(crate) fn wait_for_way(&self, way: &str) {
        wait_until("the way", DEADLINE, || self.get("/health").1["way"] == way);
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

    /// Waits until the server says that so many processes are left behind; what it says then.
    #[track_caller]
    pub(crate) fn wait_for_orphans(&self, count: usize) -> Value {
        let mut health = Value::Null;
        wait_until("the orphans", DEADLINE, || {
            health = self.get("/health").1;
            let orphans = health["orphans"].as_array();
            orphans.is_some_and(|orphans| orphans.len() == count)
        });
        health
    }

    #[track_caller]
    pub(crate) fn finish(self) -> Finished {
        self.stream.finish()
    }

    /// Waits for its end with this code, after which nobody of it is left.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32, sandbox: &Sandbox) -> Finished {
        let finished = self.finish();
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert_nobody(sandbox);
        finished
    }

    /// Asks it to end, which it does with 0 and with nobody left.
    #[track_caller]
    pub(crate) fn stops(self, sandbox: &Sandbox) -> Finished {
        self.signal(Signal::SIGTERM);
        self.ends_with(0, sandbox)
    }
}

/// A copy that everybody may read.
#[track_caller]
fn copy(sandbox: &Sandbox, from: &Path, name: &str) -> String {
    let to = sandbox.directory().join(name);
    let mut install = Command::new("install");
    let copied = install.args(["-m", "755"]).arg(from).arg(&to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{install:?}");
    to.to_str().expect("a path in UTF-8").to_owned()
}

fn pid(value: &Value) -> i32 {
    value
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or_else(|| panic!("{value} is no pid"))
}

/// One request; the code and the JSON of the answer.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> (u16, Value) {
    request(port, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// One prompt, as large as it may be.
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

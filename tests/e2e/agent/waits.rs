//! `lifemon wait` through an agent, whose waits have a limit: one without a limit goes on for ever.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use lifemon_tests::agent::{Caller, Sleeper};
use lifemon_tests::{DEADLINE, Lifemon, Output, Sandbox};
use serde_json::{Value, json};

/// The time of a wait that the agent has ended, in ms.
const A_DAY_MS: u64 = 86_400_000;

/// A request: its first line, and its body.
type Request = (String, Value);

/// Something that answers in the place of an agent, to one connection.
struct Scripted {
    socket: PathBuf,
    answering: JoinHandle<Vec<Request>>,
}

impl Scripted {
    /// Answers with these, one after the other: a status, and a body.
    fn start(sandbox: &Sandbox, answers: Vec<(u16, Value)>) -> Self {
        let socket = sandbox.directory().join("scripted.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket");
        let answering = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let mut stream = BufReader::new(stream);
            let answers = answers.into_iter();
            let answered = answers.map_while(|answer| answer_one(&mut stream, &answer));
            let mut requests: Vec<_> = answered.collect();
            // Whatever is asked beyond that.
            requests.extend(read_one(&mut stream));
            requests
        });
        Self { socket, answering }
    }

    /// Runs lifemon with it as the agent; returns what that has printed and asked.
    #[track_caller]
    fn run(self, words: &[&str]) -> (Output, Vec<Request>) {
        let mut command = Lifemon::find().command([&["--agent"][..], words].concat());
        command.env("LIFEMON_AGENT", &self.socket);
        let output = Lifemon::find().start(command).finish(DEADLINE);
        (output, self.answering.join().expect("it answers"))
    }
}

fn read_one(stream: &mut BufReader<UnixStream>) -> Option<Request> {
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a length"),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((
        first.trim_end().to_owned(),
        serde_json::from_slice(&body).unwrap_or_default(),
    ))
}

fn answer_one(stream: &mut BufReader<UnixStream>, answer: &(u16, Value)) -> Option<Request> {
    let request = read_one(stream)?;
    let (status, body) = (answer.0, answer.1.to_string());
    let head = format!(
        "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all((head + &body).as_bytes()).ok()?;
    Some(request)
}

/// Returns what an agent answers that has waited for so long.
fn waited(of: &[&Sleeper], holds: bool, elapsed_ms: u64) -> (u16, Value) {
    let targets = of.iter().map(|sleeper| {
        let name = sleeper.name();
        let (pid, start_ns) = name.split_once('@').expect("an exact name");
        json!({"pid": pid.parse::<u32>().unwrap(), "start_ns": start_ns.parse::<u64>().unwrap()})
    });
    let targets: Vec<_> = targets.collect();
    let alive = if holds { 0 } else { of.len() };
    let body = json!({"until": "extinct", "holds": holds, "targets": targets, "alive": alive,
        "elapsed_ms": elapsed_ms, "complete": true});
    (200, body)
}

fn missing() -> (u16, Value) {
    let problem = json!({"code": "no_such_process", "detail": "no process 1@1"});
    (404, problem)
}

#[test]
fn without_a_limit_it_asks_again_for_the_same_processes() {
    let sandbox = Sandbox::new();
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    let pid = sleeper.pid().to_string();
    let day = || waited(&[&sleeper], false, A_DAY_MS);
    let answers = vec![day(), day(), waited(&[&sleeper], true, 5)];
    let (output, asked) = Scripted::start(&sandbox, answers).run(&["wait", &pid]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.starts_with("extinct after"), "{output:?}");
    assert_eq!(asked.len(), 3, "{asked:?}");
    for (line, body) in &asked {
        assert!(line.starts_with("POST /v1/wait "), "{line}");
        let named = body["processes"][0].as_str().expect("a name");
        assert!(named.starts_with(&format!("{pid}@")), "{body}");
        assert_eq!(body["timeout"], format!("{A_DAY_MS}ms"), "{body}");
    }

    // Whose own time is over asks no more, nor who is not waited for at all.
    for words in [&["wait", &pid, "--timeout", "1ms"][..], &["wait", &pid]] {
        let over = vec![waited(&[&sleeper], false, 1)];
        let (output, asked) = Scripted::start(&sandbox, over).run(words);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert_eq!(asked.len(), 1, "{asked:?}");
    }
}

#[test]
fn one_that_has_ended_between_two_requests_has_ended() {
    let sandbox = Sandbox::new();
    let sleepers = [(); 2].map(|()| Sleeper::start(&sandbox, &Caller::root()));
    let [first, second] = &sleepers;
    let pids = [first, second].map(|sleeper| sleeper.pid().to_string());
    let words = ["wait", "-o", "json", &pids[0], &pids[1]];
    let day = || waited(&[first, second], false, A_DAY_MS);
    let found = || (200, json!({}));
    let answers = vec![day(), missing(), missing(), found(), missing(), missing()];
    let (output, asked) = Scripted::start(&sandbox, answers).run(&words);
    let report: Value = output.success();
    assert_eq!(report["holds"], true, "{report}");
    assert_eq!(report["alive"], 0, "{report}");
    assert_eq!(report["answered_by"], "agent", "{report}");
    assert_eq!(asked[4].1["processes"], json!([second.name()]), "{asked:?}");

    // The first of them is enough for who waits for that.
    let answers = vec![day(), missing(), missing(), found()];
    let any = [&words[..], &["--until", "any-exit"]].concat();
    let (output, asked) = Scripted::start(&sandbox, answers).run(&any);
    let report: Value = output.success();
    assert_eq!(report["holds"], true, "{report}");
    assert_eq!(asked.len(), 4, "{asked:?}");

    // Who was never there is no such process, and what a driver has of one nobody knows any more.
    let (output, _) = Scripted::start(&sandbox, vec![missing()]).run(&words);
    assert_eq!(output.code, Some(4), "{output:?}");
    let answers = vec![day(), missing()];
    let released = [&words[..], &["--until", "released"]].concat();
    let (output, _) = Scripted::start(&sandbox, answers).run(&released);
    assert_eq!(output.code, Some(4), "{output:?}");
}

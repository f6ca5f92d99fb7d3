//! Events: what was missed is said, never passed over.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use lifemon_tests::agent::{Agent, Caller, Sleeper};
use lifemon_tests::{Sandbox, needs};
use serde_json::{Value, json};

use super::callers;

const USER: u32 = 54_321;

struct Listener {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(agent: &Agent, of: &Caller, query: &str) -> Self {
        let socket = agent.socket().display().to_string();
        let url = format!("http://lifemon/v1/events{query}");
        let words = [
            "curl",
            "-sSN",
            "--max-time",
            "60",
            "--unix-socket",
            &socket,
            &url,
        ];
        let mut command = of.command(&words);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("curl runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Reads the next line.
    #[track_caller]
    fn until_any(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Reads until this event comes; returns all up to it.
    #[track_caller]
    fn until(&mut self, event: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            let is_last = line["event"] == event;
            seen.push(line);
            if is_last {
                return seen;
            }
        }
        panic!("no {event}: {seen:?}");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_stream_goes_on_where_it_was_and_says_so_where_it_cannot() {
    callers!();
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut agent = Agent::start(&sandbox, &[]);
    let user = Caller::user(USER, &[]);
    let words = ["sh", "-c", "sleep 2; sleep 3 & exec sleep 600"];
    let tree = Sleeper::run(&sandbox, &user, &words, "sh");
    let body = json!({"process": tree.name()});
    let made = user.post(&agent, "/v1/watches", &body).expect(201);
    let mut listener = Listener::start(&agent, &user, "");
    let begin = listener.until("ready");
    assert_eq!(begin[0]["event"], "attached", "{begin:?}");
    let seen = listener.until("fork");
    let id = seen.last().expect("a fork")["id"].as_str().expect("an id");
    drop(listener);
    // Others have other watches.
    let other = Caller::user(USER + 1, &[]);
    let mut nothing = Listener::start(&agent, &other, "");
    assert_eq!(nothing.until("ready").len(), 1);

    let mut again = Listener::start(&agent, &user, &format!("?after={id}"));
    let resumed = again.until("exit");
    assert_eq!(resumed[0]["event"], "resumed", "{resumed:?}");
    assert!(resumed.iter().all(|line| line["event"] != "attached"));
    drop(again);
    let path = format!("/v1/watches/{}", made["id"].as_str().expect("an id"));
    agent.kill();
    agent.start_again();
    user.ask(&agent, "DELETE", &path, &[]).expect(404);
    user.post(&agent, "/v1/watches", &body).expect(201);
    let mut after = Listener::start(&agent, &user, &format!("?after={id}"));
    let begin = after.until("ready");
    assert_eq!(begin[0]["event"], "lost", "{begin:?}");
    assert_eq!(begin[0]["reason"], "restarted", "{begin:?}");
    assert_eq!(begin[1]["event"], "attached", "{begin:?}");
}

#[test]
fn four_trees_and_four_streams() {
    callers!();
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let user = Caller::user(USER, &[]);
    let sleepers: Vec<_> = (0..5).map(|_| Sleeper::start(&sandbox, &user)).collect();
    for (index, sleeper) in sleepers.iter().enumerate() {
        let body = json!({"process": sleeper.name()});
        let answer = user.post(&agent, "/v1/watches", &body);
        if index < 4 {
            answer.expect(201);
        } else {
            answer.problem(429, "limit_reached");
        }
    }
    let mut streams: Vec<_> = (0..4).map(|_| Listener::start(&agent, &user, "")).collect();
    for stream in &mut streams {
        stream.until("ready");
    }
    user.get(&agent, "/v1/events").problem(429, "limit_reached");
    drop(streams);
}

#[test]
fn who_reads_slowly_gets_lost_and_a_snapshot_and_delays_nobody() {
    callers!();
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let agent = Agent::start(&sandbox, &[]);
    let user = Caller::user(USER, &[]);
    // Far more events than may be under way to one reader.
    let script = "sleep 2; i=0; while [ $i -lt 6000 ]; do : & i=$((i+1)); done; wait; \
        sh -c 'exit 7'; exec sleep 600";
    let tree = Sleeper::run(&sandbox, &user, &["sh", "-c", script], "sh");
    let body = json!({"process": tree.name()});
    user.post(&agent, "/v1/watches", &body).expect(201);
    let mut slow = Listener::start(&agent, &user, "");
    let mut quick = Listener::start(&agent, &user, "");
    slow.until("ready");
    quick.until("ready");
    // The quick one sees the end of the storm while the slow one reads nothing.
    let is_last = |line: &Value| line["exit"]["code"] == 7;
    let mut forks = 0;
    loop {
        let line = quick.until_any();
        forks += usize::from(line["event"] == "fork");
        assert_ne!(line["reason"], "slow_reader", "{line}");
        if is_last(&line) {
            break;
        }
    }
    assert!(forks >= 6_000, "{forks}");
    // What has not found room is said, and what is the case now.
    let lost = loop {
        let line = slow.until_any();
        if line["event"] == "lost" {
            break line;
        }
    };
    assert_eq!(lost["reason"], "slow_reader", "{lost}");
    assert_eq!(slow.until_any()["event"], "attached");
}

//! Guards: an owner dies or disconnects, and its trees end, whatever happens to the agent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use lifemon_tests::agent::{Agent, Caller, Sleeper, pids, python_for_all};
use lifemon_tests::{DEADLINE, wait_until};
use serde_json::{Value, json};

use super::begin;

const USER: u32 = 54_321;

/// A caller that keeps its connection: it sends a line for each request, and gets one back.
struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

const CLIENT: &str = r#"
import http.client, json, socket, sys
connection = http.client.HTTPConnection("lifemon")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
for line in sys.stdin:
    method, path, body = json.loads(line)
    connection.request(method, path, body)
    answer = connection.getresponse()
    print(json.dumps([answer.status, json.loads(answer.read())]), flush=True)
"#;

impl Client {
    fn connect(agent: &Agent, of: &Caller) -> Self {
        let socket = agent.socket().display().to_string();
        let mut command =
            of.command(&[&python_for_all().expect("a Python"), "-c", CLIENT, &socket]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python runs");
        Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let line = json!([method, path, body.to_string()]);
        writeln!(self.stdin, "{line}").expect("it reads");
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).expect("it answers");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer[0], status, "{answer}");
        answer[1].clone()
    }

    fn guard(&mut self, owner: &Sleeper, tree: &Sleeper, on_disconnect: bool) -> String {
        let body = json!({"owner": owner.name(), "trees": [tree.name()],
            "on_disconnect": on_disconnect});
        let made = self.ask("POST", "/v1/guards", &body, 201);
        made["id"].as_str().expect("an id").to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_until_ended(what: &str, sleeper: &mut Sleeper) {
    wait_until(what, DEADLINE, || !sleeper.is_running());
}

#[test]
fn trees_end_with_their_owner() {
    begin!(python, sandbox, agent);
    let user = Caller::user(USER, &[]);
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let mut client = Client::connect(&agent, &user);
    client.guard(&owner, &tree, false);
    let listed = client.ask("GET", "/v1/guards", &json!({}), 200);
    assert_eq!(
        listed["guards"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    drop(client);
    assert!(tree.is_running(), "its end was not to fire it");
    owner.kill();
    wait_until_ended("the tree has ended", &mut tree);
    wait_until("the guard is gone", DEADLINE, || {
        user.get(&agent, "/v1/guards").json()["guards"] == json!([])
    });
}

#[test]
fn trees_end_with_the_connection_and_a_released_guard_ends_nothing() {
    begin!(python, sandbox, agent);
    let user = Caller::user(USER, &[]);
    let mut owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let mut free = Sleeper::start(&sandbox, &user);
    let mut client = Client::connect(&agent, &user);
    client.guard(&owner, &tree, true);
    let id = client.guard(&owner, &free, true);
    client.ask("DELETE", &format!("/v1/guards/{id}"), &json!({}), 200);
    // Nobody guards the trees of others.
    let foreign = Sleeper::start(&sandbox, &Caller::root());
    let body = json!({"trees": [foreign.name()]});
    client.ask("POST", "/v1/guards", &body, 403);
    drop(client);
    wait_until_ended("the tree has ended", &mut tree);
    assert!(free.is_running() && owner.is_running());
    owner.kill();
    assert!(free.is_running());
}

#[test]
fn the_end_of_the_agent_is_no_disconnect() {
    begin!(python, sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    let owner = Sleeper::start(&sandbox, &user);
    let mut tree = Sleeper::start(&sandbox, &user);
    let mut client = Client::connect(&agent, &user);
    let id = client.guard(&owner, &tree, true);
    for ends_well in [true, false] {
        if ends_well {
            agent.stop();
        } else {
            agent.kill();
        }
        agent.start_again();
        let listed = user.get(&agent, "/v1/guards").expect(200);
        assert_eq!(listed["guards"][0]["id"], id, "{listed}");
        assert_eq!(listed["guards"][0]["connected"], false, "{listed}");
        assert!(tree.is_running());
    }
    // The fronts' end is none either.
    for front in agent.fronts() {
        lifemon_tests::Pidfd::open(front).expect("it lives").kill();
    }
    // Another connection takes it up.
    let taken = lifemon_tests::poll(DEADLINE, || {
        let mut again = Client::connect(&agent, &user);
        let line = json!(["PUT", format!("/v1/guards/{id}"), ""]);
        writeln!(again.stdin, "{line}").ok()?;
        let mut answer = String::new();
        again.stdout.read_line(&mut answer).ok()?;
        answer.contains("\"connected\": true").then_some(again)
    });
    let again = taken.expect("it was taken up");
    drop(client);
    assert!(tree.is_running());
    drop(again);
    wait_until_ended("the tree has ended", &mut tree);
}

#[test]
fn a_guard_whose_owner_dies_while_no_agent_runs_fires_afterwards() {
    begin!(python, sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    // The owner is the root of the tree, and what it leaves is to end.
    let words = ["sh", "-c", "sleep 600 & sleep 601 & exec sleep 602"];
    let mut owner = Sleeper::run(&sandbox, &user, &words, "sleep");
    wait_until("its children run", DEADLINE, || pids(&sandbox).len() == 3);
    let mut client = Client::connect(&agent, &user);
    let body = json!({"owner": owner.name(), "trees": [owner.name()], "grace": "1s"});
    client.ask("POST", "/v1/guards", &body, 201);
    agent.kill();
    owner.kill();
    assert_eq!(pids(&sandbox).len(), 2);
    agent.start_again();
    wait_until("all have ended", DEADLINE, || pids(&sandbox).is_empty());
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_no_guard() {
    begin!(python, sandbox, mut agent);
    let user = Caller::user(USER, &[]);
    for round in 0..lifemon_tests::scaled(10).max(3) {
        let mut owner = Sleeper::start(&sandbox, &user);
        let mut tree = Sleeper::start(&sandbox, &user);
        let mut client = Client::connect(&agent, &user);
        client.guard(&owner, &tree, true);
        match round % 3 {
            0 => {
                agent.kill();
                owner.kill();
                agent.start_again();
            }
            1 => {
                owner.kill();
                agent.kill();
                agent.start_again();
            }
            _ => {
                drop(client);
                agent.kill();
                agent.start_again();
                // Whether the end of the connection was seen or not: the owner's is.
                owner.kill();
            }
        }
        wait_until_ended("the tree has ended", &mut tree);
    }
}

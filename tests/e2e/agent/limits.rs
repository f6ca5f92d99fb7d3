//! What one user may take, however many users and namespaces it makes itself.

use std::fs;

use lifemon_tests::agent::{Agent, Answer, Caller, Sleeper};
use lifemon_tests::{Sandbox, has_programs};
use serde_json::json;

use super::begin;

const USER: u32 = 54_321;
const OTHER: u32 = 54_322;

#[test]
fn a_user_has_sixteen_connections_and_two_hundred_of_root_are_served() {
    begin!(python = python, sandbox, agent);
    let script = r#"
import socket, sys
sockets, answers = [], []
for number in range(int(sys.argv[2])):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(20)
    one.connect(sys.argv[1])
    one.sendall(b"GET /v1/info HTTP/1.1\r\nhost: x\r\n\r\n")
    sockets.append(one)
for one in sockets:
    answers.append(one.recv(12).decode())
print(answers.count("HTTP/1.1 200"), answers.count("HTTP/1.1 429"))
"#;
    let socket = agent.socket().display().to_string();
    let run = |caller: &Caller, count: &str| {
        let mut command = caller.command(&[&python, "-c", script, &socket, count]);
        let output = command.output().expect("python runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(run(&Caller::root(), "200"), "200 0");
    assert_eq!(run(&Caller::user(USER, &[]), "20"), "16 4");
}

/// Namespaces anybody can make, as many as are wanted.
#[test]
fn a_user_has_no_more_in_namespaces_of_its_own() {
    begin!(python = python, sandbox, agent);
    let script = r#"
import ctypes, os, socket, sys
NEW_USER, NEW_PID = 0x10000000, 0x20000000
sockets = []
def granted(count):
    for number in range(count):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(20)
        one.connect(sys.argv[1])
        one.sendall(b"GET /v1/info HTTP/1.1\r\nhost: x\r\n\r\n")
        sockets.append(one)
    return sum(one.recv(12) == b"HTTP/1.1 200" for one in sockets[-count:])
print(granted(10), flush=True)
if os.fork() == 0:
    if ctypes.CDLL(None).unshare(NEW_USER | NEW_PID):
        print("no namespaces", flush=True)
    elif os.fork() == 0:
        print(granted(10), flush=True)
    else:
        os.wait()
    os._exit(0)
os.wait()
"#;
    let socket = agent.socket().display().to_string();
    let mut command = Caller::user(USER, &[]).command(&[&python, "-c", script, &socket]);
    let output = command.output().expect("python runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let granted: Vec<_> = text.lines().collect();
    if granted == ["10", "no namespaces"] {
        println!("skipped: users may not make namespaces");
        return;
    }
    assert_eq!(granted, ["10", "6"], "{output:?}");
}

/// A user namespace with users that are subordinate to whoever has made it. It is there as long as
/// this is.
struct UserNamespace(Sleeper);

impl UserNamespace {
    /// Makes one, with this range of the host's users.
    #[track_caller]
    fn of(sandbox: &Sandbox, maker: &Caller, first: u32) -> Self {
        let words = ["unshare", "--user", "sleep", "600"];
        let holder = Sleeper::run(sandbox, maker, &words, "sleep");
        // As newuidmap does for a user that has the range in /etc/subuid.
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", holder.pid());
            fs::write(path, format!("0 {first} 1000\n")).expect("a map");
        }
        Self(holder)
    }

    /// Returns one of its users.
    fn user(&self, uid: u32) -> Caller {
        Caller::root().entering(self.0.pid(), uid)
    }
}

/// Starts a process of a caller, and lets it watch that.
#[track_caller]
fn watch_own(agent: &Agent, sandbox: &Sandbox, of: &Caller) -> (Sleeper, Answer) {
    let sleeper = Sleeper::start(sandbox, of);
    let answer = of.post(agent, "/v1/watches", &json!({"process": sleeper.name()}));
    (sleeper, answer)
}

fn watches(agent: &Agent, of: &Caller) -> usize {
    let listed = of.get(agent, "/v1/watches").expect(200);
    listed["watches"].as_array().map_or(0, Vec::len)
}

#[test]
fn subordinate_users_share_the_limits_of_their_user_and_nothing_else() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    let mut probe = user.command(&["unshare", "--user", "true"]);
    if !has_programs(&["nsenter"]) || !probe.status().is_ok_and(|status| status.success()) {
        println!("skipped: users may not make namespaces");
        return;
    }
    let own = UserNamespace::of(&sandbox, &user, 1_000_000);
    let (first, second) = (own.user(5), own.user(6));
    let uid = &first.get(&agent, "/v1/info").expect(200)["caller"]["uid"];
    assert_eq!(*uid, 1_000_005, "a user of its own");
    let mut kept = Vec::new();
    for caller in [&first, &first, &second, &user] {
        let (sleeper, answer) = watch_own(&agent, &sandbox, caller);
        answer.expect(201);
        kept.push(sleeper);
    }
    for caller in [&first, &second, &user] {
        let (_sleeper, answer) = watch_own(&agent, &sandbox, caller);
        answer.problem(429, "limit_reached");
    }
    // What one has made is not the others'.
    let each = [&first, &second, &user].map(|caller| watches(&agent, caller));
    assert_eq!(each, [2, 1, 1]);
    // Others have theirs: also the users of a namespace that root has made, each for itself.
    let of_root = UserNamespace::of(&sandbox, &Caller::root(), 2_000_000);
    for caller in [Caller::user(OTHER, &[]), of_root.user(5), of_root.user(6)] {
        for _ in 0..4 {
            let (sleeper, answer) = watch_own(&agent, &sandbox, &caller);
            answer.expect(201);
            kept.push(sleeper);
        }
        let (_sleeper, answer) = watch_own(&agent, &sandbox, &caller);
        answer.problem(429, "limit_reached");
    }
}

//! Every cell of the table of rights, both ways: who sees and who ends what.

use lifemon_tests::Sandbox;
use lifemon_tests::agent::{Agent, Caller, Container, KILLERS, READERS, Sleeper};
use serde_json::json;

use super::begin;

const USER: u32 = 54_321;
const OTHER: u32 = 54_322;

fn sees(agent: &Agent, caller: &Caller, of: &Sleeper) -> bool {
    let answer = caller.get(agent, &format!("/v1/tree/{}", of.name()));
    match answer.status {
        200 => true,
        403 | 404 => false,
        _ => panic!("{answer:?}"),
    }
}

/// Tries to end a process, and returns whether that was done.
fn ends(agent: &Agent, caller: &Caller, of: &mut Sleeper) -> bool {
    let answer = caller.post(agent, "/v1/kills", &json!({"process": of.name()}));
    match answer.status {
        200 => {
            assert_eq!(answer.json()["extinct"], true, "{answer:?}");
            assert!(!of.is_running(), "{answer:?}");
            true
        }
        403 | 404 => {
            assert!(of.is_running(), "{answer:?}");
            false
        }
        _ => panic!("{answer:?}"),
    }
}

/// Checks what a caller may with processes of root, of its user, and of another user.
#[track_caller]
fn check(agent: &Agent, sandbox: &Sandbox, caller: &Caller, expected: [(bool, bool); 3]) {
    let owners = [
        Caller::root(),
        Caller::user(USER, &[]),
        Caller::user(OTHER, &[]),
    ];
    for (owner, (may_see, may_end)) in owners.iter().zip(expected) {
        let mut sleeper = Sleeper::start(sandbox, owner);
        let whose = format!("{caller:?} and a process of {owner:?}");
        assert_eq!(sees(agent, caller, &sleeper), may_see, "{whose}");
        assert_eq!(ends(agent, caller, &mut sleeper), may_end, "{whose}");
    }
}

const ALL: (bool, bool) = (true, true);
const SEES: (bool, bool) = (true, false);
const NOTHING: (bool, bool) = (false, false);

#[test]
fn root_of_the_host() {
    begin!(sandbox, agent);
    check(&agent, &sandbox, &Caller::root(), [ALL, ALL, ALL]);
    // What it is not able to, it may not: then uid 0 is a user like others.
    let sees = Caller::root().without(&["kill"]);
    check(&agent, &sandbox, &sees, [ALL, SEES, SEES]);
    let ends = Caller::root().without(&["sys_ptrace"]);
    check(&agent, &sandbox, &ends, [ALL, NOTHING, NOTHING]);
    let neither = Caller::root().without(&["kill", "sys_ptrace"]);
    check(&agent, &sandbox, &neither, [ALL, NOTHING, NOTHING]);
}

#[test]
fn users_and_groups() {
    begin!(sandbox, agent);
    let user = Caller::user(USER, &[]);
    check(&agent, &sandbox, &user, [NOTHING, ALL, NOTHING]);
    let reader = Caller::user(USER, &[READERS.1]);
    check(&agent, &sandbox, &reader, [SEES, ALL, SEES]);
    let killer = Caller::user(USER, &[KILLERS.1]);
    check(&agent, &sandbox, &killer, [ALL, ALL, ALL]);
    let other = Caller::user(USER, &[READERS.1 + 1]);
    check(&agent, &sandbox, &other, [NOTHING, ALL, NOTHING]);
    // Not init, and not the agent: nobody.
    for protected in ["1@0".to_owned(), lifemon_tests::agent::name_of(agent.pid())] {
        let body = json!({"process": protected});
        let answer = killer.post(&agent, "/v1/kills", &body);
        assert!(matches!(answer.status, 403 | 404), "{answer:?}");
    }
    assert_eq!(killer.get(&agent, "/livez").status, 200);
}

#[test]
fn uid_0_elsewhere_is_not_root() {
    begin!(sandbox, agent);
    let pids = Caller::root().unshared(&["--pid", "--fork", "--mount-proc"]);
    check(&agent, &sandbox, &pids, [NOTHING, NOTHING, NOTHING]);
    let users = Caller::root().unshared(&["--user", "--map-root-user"]);
    check(&agent, &sandbox, &users, [NOTHING, NOTHING, NOTHING]);
    let both = Caller::root().unshared(&["--user", "--map-root-user", "--pid", "--fork"]);
    check(&agent, &sandbox, &both, [NOTHING, NOTHING, NOTHING]);
    // Groups are for whoever makes the container to choose.
    let grouped = Caller::user(USER, &[KILLERS.1]).unshared(&["--pid", "--fork"]);
    check(&agent, &sandbox, &grouped, [NOTHING, NOTHING, NOTHING]);
    let info = pids.get(&agent, "/v1/info").expect(200);
    assert_eq!(info["caller"]["sees"], "uid_in_namespaces", "{info}");
    assert_eq!(info["caller"]["uid"], 0, "{info}");
}

#[test]
fn a_container_has_what_is_in_it() {
    begin!(sandbox, agent);
    let container = Container::new(&sandbox);
    let inside = |caller: Caller| caller.within(container.path());
    let private = inside(Caller::root().unshared(&["--pid", "--fork", "--mount-proc"]));
    check(&agent, &sandbox, &private, [NOTHING, NOTHING, NOTHING]);
    // It shares the pids of the host, without the capabilities.
    let weak = inside(Caller::root().without(&["kill", "sys_ptrace"]));
    check(&agent, &sandbox, &weak, [NOTHING, NOTHING, NOTHING]);
    let grouped = inside(Caller::user(USER, &[KILLERS.1]));
    check(&agent, &sandbox, &grouped, [NOTHING, NOTHING, NOTHING]);
    for caller in [&private, &weak] {
        let mut of_root = Sleeper::start(&sandbox, &inside(Caller::root()));
        let mut of_user = Sleeper::start(&sandbox, &inside(Caller::user(USER, &[])));
        assert!(sees(&agent, caller, &of_root) && sees(&agent, caller, &of_user));
        // The kernel decides by uid 0 without capabilities.
        assert!(!ends(&agent, caller, &mut of_user), "{caller:?}");
        assert!(ends(&agent, caller, &mut of_root), "{caller:?}");
    }
    // With the pids of the host and all capabilities, it could do all by itself.
    let strong = inside(Caller::root());
    check(&agent, &sandbox, &strong, [ALL, ALL, ALL]);
}

#[test]
fn whom_one_does_not_see_is_counted() {
    begin!(sandbox, agent);
    let own = Sleeper::start(&sandbox, &Caller::user(USER, &[]));
    let foreign = Sleeper::start(&sandbox, &Caller::user(OTHER, &[]));
    let user = Caller::user(USER, &[]);
    let tree = user.get(&agent, "/v1/tree").expect(200);
    let processes = tree["processes"].as_array().expect("a list");
    assert!(processes.iter().any(|process| process["pid"] == own.pid()));
    assert!(
        processes.iter().all(|process| process["uid"] == USER),
        "{tree}"
    );
    assert!(
        processes
            .iter()
            .all(|process| process["pid"] != foreign.pid())
    );
    assert!(tree["others"].as_u64() > Some(1), "{tree}");
    let all = Caller::root().get(&agent, "/v1/tree").expect(200);
    assert!(all.get("others").is_none());
}

#[test]
fn a_program_in_a_container_names_its_processes_without_pids_of_the_host() {
    begin!(python = python, sandbox, agent);
    // Two sockets: it sends a pidfd over one, and asks over the other.
    let script = r#"
import array, http.client, json, os, socket, subprocess, sys
directory = sys.argv[1]
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(directory + "/lifemon.sock")
def get(path):
    connection = Connection("lifemon")
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
child = subprocess.Popen(["sleep", "600"])
handle = socket.socket(socket.AF_UNIX)
handle.connect(directory + "/handle.sock")
pidfd = os.pidfd_open(child.pid)
handle.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))])
token = json.loads(handle.makefile().readline())["handle"]
by_handle = get("/v1/tree/handle:" + token)
by_pid = get("/v1/tree/ns:%d" % child.pid)
own = get("/v1/tree/self")
other = subprocess.run([sys.executable, "-c", """
import http.client, socket, sys
connection = http.client.HTTPConnection("lifemon")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1] + "/lifemon.sock")
connection.request("GET", "/v1/tree/handle:" + sys.argv[2])
print(connection.getresponse().status)
""", directory, token], capture_output=True, text=True).stdout.strip()
handle = socket.socket(socket.AF_UNIX)
handle.connect(directory + "/handle.sock")
handle.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
no_pidfd = json.loads(handle.makefile().readline())["code"]
child.kill()
print(json.dumps([child.pid, by_handle, by_pid, own, other, no_pidfd]))
"#;
    let directory = agent.directory().display().to_string();
    let container =
        Caller::user(USER, &[]).unshared(&["--pid", "--fork", "--mount-proc", "--kill-child"]);
    let output = container
        .command(&[&python, "-c", script, &directory])
        .output();
    let output = output.expect("python runs");
    let said: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let pid = &said[0];
    for named in [&said[1], &said[2]] {
        assert_eq!(named[0], 200, "{said}");
        assert_eq!(named[1]["processes"][0]["name"], "sleep", "{said}");
        assert_eq!(&named[1]["processes"][0]["ns_pid"], pid, "{said}");
        assert_ne!(&named[1]["processes"][0]["pid"], pid, "{said}");
    }
    assert_eq!(said[1][1]["tree"], said[2][1]["tree"]);
    assert_eq!(said[3][1]["processes"][0]["ns_pid"], 1, "{said}");
    assert_eq!(said[4], "404", "a token is for who has got it: {said}");
    assert_eq!(said[5], "invalid_request", "{said}");
}

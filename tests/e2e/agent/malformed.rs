//! What is no request: refused with its code, and everybody else is served all the same. And a
//! front that lies.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lifemon_tests::agent::{Agent, Caller, Sleeper, python_for_all};
use lifemon_tests::{Sandbox, needs};

use super::{begin, callers};

/// Sends bytes, and returns what comes back until the connection is closed or the time is over.
fn send(agent: &Agent, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(agent.socket()).expect("it listens");
    let timeout = Some(Duration::from_secs(5));
    socket.set_read_timeout(timeout).expect("a timeout");
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_no_request_is_refused_with_its_code() {
    begin!(sandbox, agent);
    let root = Caller::root();
    let post = |body: &str| {
        let file = sandbox.directory().join("body");
        fs::write(&file, body).expect("a file");
        let data = format!("@{}", file.display());
        root.ask(&agent, "POST", "/v1/kills", &["--data-binary", &data])
    };
    post("").problem(400, "invalid_json");
    post("{").problem(400, "invalid_json");
    post("[]").problem(400, "invalid_json");
    post(r#"{"process":"self","unknown":1}"#).problem(400, "invalid_json");
    post(r#"{"process":"12"}"#).problem(400, "invalid_json");
    post(r#"{"process":"99@1","signal":"NONE"}"#).problem(400, "invalid_request");
    post(r#"{"process":"99@1","grace":"1y"}"#).problem(400, "invalid_request");
    post(r#"{"process":"99@1"}"#).problem(404, "no_such_process");
    post(&("[".repeat(33) + &"]".repeat(33))).problem(400, "json_too_deep");
    post(&format!("{{\"process\":\"{}\"}}", "x".repeat(70_000))).problem(413, "body_too_large");
    root.get(&agent, "/v1/orphans?unknown=1")
        .problem(400, "invalid_request");
    root.get(&agent, "/v1/tree/12")
        .problem(400, "invalid_request");
    root.get(&agent, "/v1/nothing").problem(404, "not_found");
    root.ask(&agent, "DELETE", "/v1/tree", &[])
        .problem(405, "method_not_allowed");
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/kills HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/kills HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/kills HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = send(&agent, bytes);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    let head = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let answer = send(&agent, head.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(root.get(&agent, "/livez").status, 200);
    assert_eq!(agent.fronts().len(), 2, "none has died of it");
}

#[test]
fn who_drips_is_cut_off_and_who_is_silent_between_requests_is_not() {
    begin!(sandbox, agent);
    let mut silent = UnixStream::connect(agent.socket()).expect("it listens");
    let ask = |socket: &mut UnixStream| {
        let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        socket.write_all(request).expect("it listens");
        let mut answer = [0; 512];
        let length = socket.read(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(ask(&mut silent).starts_with("HTTP/1.1 200"));
    let mut slow = UnixStream::connect(agent.socket()).expect("it listens");
    let begun = Instant::now();
    let mut is_cut_off = false;
    while begun.elapsed() < Duration::from_secs(30) && !is_cut_off {
        is_cut_off = slow.write_all(b"G").is_err();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(
        is_cut_off && begun.elapsed() > Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert!(ask(&mut silent).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_front_that_lies_gets_nothing() {
    callers!();
    let Some(python) = python_for_all() else {
        return;
    };
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    // It asks in the name of connections that it was not given, and says so to the one it has.
    let liar = r#"
import array, json, socket, struct, sys
calls = socket.socket(fileno=int(sys.argv[2]))
connections = socket.socket(fileno=int(sys.argv[3]))
connections.setblocking(True)
calls.setblocking(True)
def ask(connection, number, call):
    head = json.dumps({"ask": {"connection": connection, "number": number, "call": call}}).encode()
    calls.sendall(struct.pack("<II", len(head), 0) + head)
    def read(length):
        got = b""
        while len(got) < length:
            more = calls.recv(length - len(got))
            if not more:
                sys.exit(0)
            got += more
        return got
    head, body = struct.unpack("<II", read(8))
    return json.loads(read(head))["status"], json.loads(read(body))
while True:
    data, control, _, _ = connections.recvmsg(8, socket.CMSG_SPACE(4))
    if not data:
        sys.exit(0)
    own = struct.unpack("<Q", data)[0]
    fds = array.array("i", control[0][2])
    client = socket.socket(fileno=fds[0])
    # The request may still be on its way.
    client.setblocking(True)
    client.recv(65536)
    tried = [own - 1, own + 1, 0, 2**64 - 1] + list(range(1, own))
    answers = [ask(other, index, "info")[0] for index, other in enumerate(tried)]
    caller = ask(own, 1000, "info")[1]["caller"]
    body = json.dumps([answers, caller]).encode()
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n" % len(body) + body)
    client.close()
    head = json.dumps({"done": {"connection": own}}).encode()
    calls.sendall(struct.pack("<II", len(head), 0) + head)
"#;
    let program = sandbox.directory().join("liar");
    fs::write(&program, format!("#!{python}\n{liar}")).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
    let agent = Agent::start(&sandbox, &["--front", &program.display().to_string()]);
    // Root's connection stays open beside it, with the other front.
    let root = UnixStream::connect(agent.socket()).expect("it listens");
    let user = Caller::user(54_321, &[]);
    let said = user.get(&agent, "/v1/info").expect(200);
    let answers = said[0].as_array().expect("a list");
    assert!(answers.len() > 4, "{said}");
    assert!(answers.iter().all(|status| status == 403), "{said}");
    assert_eq!(said[1]["uid"], 54_321, "{said}");
    assert_eq!(said[1]["sees"], "uid", "{said}");
    drop(root);
}

#[test]
fn the_description_of_the_api_is_served() {
    begin!(sandbox, agent);
    let described = Caller::root().get(&agent, "/v1/openapi.json").expect(200);
    let paths = described["paths"].as_object().expect("paths");
    for path in [
        "/v1/tree/{process}",
        "/v1/kills",
        "/v1/guards/{id}",
        "/livez",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let sleeper = Sleeper::start(&sandbox, &Caller::root());
    // What has no parameter but the process answers as it is described.
    for (path, calls) in paths {
        if calls.get("get").is_none() || path.contains("{id}") || path.contains("events") {
            continue;
        }
        let path = path.replace("{process}", &sleeper.name());
        let answer = Caller::root().get(&agent, &path);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

//! Real answers against the schemas in `docs/schema`, those of hostile processes too; and what
//! keeps an answer bounded and without loss.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Stdio};

use lifemon_tests::left_behind::{ask, kill_and_wait};
use lifemon_tests::schema::assert_is;
use lifemon_tests::{DEADLINE, HostTracker, Lifemon, Sandbox, actor, needs, wait_until};
use serde_json::Value;

macro_rules! schema {
    ($kind:literal) => {
        include_str!(concat!("../../docs/schema/", $kind, ".json"))
    };
}

#[test]
fn answers_are_what_the_schemas_say() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "serve", 2, "init");
    actor.step();
    let server = actor.child("server");
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    let attach = lifemon.start(lifemon.command(["attach", &pid, "-o", "json"]));
    wait_until("the first line", DEADLINE, || {
        attach.stdout_so_far().contains('\n')
    });
    kill_and_wait(server);
    let tree = server.pid.to_string();
    let worker = actor.children("worker")[0].pid.to_string();
    let all = ["--all", "--zombies"];
    assert_is(&ask("orphans", &all).success(), schema!("orphans"));
    assert_is(&ask("tree", &[]).success(), schema!("tree"));
    assert_is(
        &ask("gpu", &["--device", "/dev/null"]).success(),
        schema!("gpu"),
    );
    assert_is(&ask("log", &[]).success(), schema!("log"));
    assert_is(&ask("explain", &[&worker]).success(), schema!("explain"));
    assert_is(&ask("explain", &[&tree]).success(), schema!("explain"));
    let wait = ask("wait", &[&tree, "--timeout", "1ms"]);
    assert_is(&wait.report(), schema!("wait"));
    assert_is(&ask("doctor", &[]).report(), schema!("doctor"));
    assert_is(
        &ask("kill", &[&tree, "--dry-run"]).success(),
        schema!("kill"),
    );
    let report: Value = ask("kill", &[&tree, &pid]).success();
    assert_is(&report, schema!("kills"));
    actor.wait();
    let lines = attach.finish(DEADLINE);
    assert!(lines.stdout.lines().count() > 4, "{lines:?}");
    for line in lines.stdout.lines() {
        let line = serde_json::from_str(line).expect("an object a line");
        assert_is(&line, schema!("event"));
    }
}

#[test]
fn the_state_of_the_tracker_and_the_report_of_a_run_too() {
    let tracker = HostTracker::off();
    assert_is(&ask("track", &["on"]).success(), schema!("track"));
    assert_is(
        &ask("track", &["status"]).success(),
        schema!("track_status"),
    );
    assert_is(&ask("track", &["off"]).success(), schema!("track"));
    let sandbox = Sandbox::new();
    let path = sandbox.directory().join("report.json");
    let file = path.to_str().unwrap();
    let lifemon = Lifemon::find();
    let output = lifemon.run([
        "run",
        "--json",
        file,
        "--",
        "sh",
        "-c",
        "sleep 1000 & exit 3",
    ]);
    assert_eq!(output.code, Some(3), "{output:?}");
    let report = std::fs::read_to_string(path).unwrap();
    assert_is(&serde_json::from_str(&report).unwrap(), schema!("run"));
    tracker.switch_off();
}

/// Starts a process with a long command line that is no UTF-8.
fn hostile(sandbox: &Sandbox, index: u8) -> Child {
    let mut word = vec![0xff, 0x9b, b'[', b'2', b'J', index + 1];
    word.resize(100_000, 0x01);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "sleep 1000; true"])
        .arg(OsStr::from_bytes(&word))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    sandbox.enter(&mut shell);
    shell.spawn().expect("a shell starts")
}

#[test]
fn hostile_command_lines_are_bounded_and_lose_nothing() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut children: Vec<_> = (0..40).map(|index| hostile(&sandbox, index)).collect();
    let pid = children[0].id();
    wait_until("the program", DEADLINE, || {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.len() > 90_000)
    });
    let output = ask("tree", &[]);
    let size = output.stdout.len();
    let report: Value = output.success();
    for child in &mut children {
        _ = child.kill();
        _ = child.wait();
    }
    assert!(size < 8 << 20, "{size} bytes");
    assert!(
        !output
            .stdout
            .contains(|c: char| ('\u{7f}'..='\u{9f}').contains(&c)),
        "a control character"
    );
    assert_is(&report, schema!("tree"));
    let processes = report["processes"].as_array().unwrap();
    let found = processes.iter().find(|process| process["pid"] == pid);
    let found = found.unwrap();
    assert_eq!(found["truncated"], true);
    let bytes = found["bytes"].as_str().expect("bytes");
    // `sh\0-c\0sleep 1000; true\0\xff\x9b[2J` in base64.
    assert!(
        bytes.starts_with("c2gALWMAc2xlZXAgMTAwMDsgdHJ1ZQD/m1sySg"),
        "{bytes}"
    );
    assert!(bytes.len() < 6_000);
}

//! Selectors: who holds a file, a port, who is of a user, a unit, a container, a job; the same for
//! every command that lists processes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use lifemon_tests::left_behind::{ask, orphans, tree};
use lifemon_tests::reports::{Identified, find};
use lifemon_tests::{Group, Lifemon, Process, Sandbox, Script, needs};
use serde_json::Value;

/// A parent that dies and leaves what holds `FILE` and a port behind, below a shell that holds
/// neither; and a bystander, left behind too.
const LEFT: &str = r#"
import os, socket, sys, time
def left(name, work):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            work(writer)
            while True: time.sleep(1000)
        time.sleep(0.05)
        os._exit(9)
    os.wait()
    os.close(writer)
    for line in os.fdopen(reader).read().splitlines(): print(line)
def told(writer, *lines):
    os.write(writer, "".join(line + "\n" for line in lines).encode())
    os.close(writer)
def holder(writer):
    top = os.getpid()
    if os.fork() == 0:
        global kept
        os.closerange(3, writer)
        kept = [open("FILE"), socket.create_server(("127.0.0.1", 0))]
        port = kept[1].getsockname()[1]
        told(writer, f"holder {top}", f"below {os.getpid()}", f"port-{port} {os.getpid()}")
        while True: time.sleep(1000)
    os.close(writer)
def bystander(writer):
    os.environ["X"] = "1"
    told(writer, f"bystander {os.getpid()}")
left("holder", holder)
left("bystander", bystander)
print("ready", flush=True)
time.sleep(1000)
"#;

/// Returns who is left behind with these options, of two processes that are.
#[track_caller]
fn chosen(options: &[&str], processes: [Process; 2]) -> [bool; 2] {
    let report = orphans(options);
    processes.map(|process| find(&report.orphans, process).is_some())
}

#[test]
fn orphans_are_chosen_by_what_is_held_below_them() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("held file");
    fs::write(&file, "x").unwrap();
    let text = LEFT.replace("FILE", file.to_str().unwrap());
    let script = Script::start(&sandbox, "python3", &text);
    let both = ["holder", "bystander"].map(|name| script.process(name));
    let port = script.word("port-");
    let file = file.to_str().unwrap();
    let directory = sandbox.directory().to_str().unwrap();
    assert_eq!(chosen(&[], both), [true, true]);
    for options in [["--holds", file], ["--holds", directory], ["--port", &port]] {
        assert_eq!(chosen(&options, both), [true, false], "{options:?}");
    }
    for options in [
        &["--holds", "/no/such/file"][..],
        &["--port", &port, "--older-than", "1h"],
        &["--port", &port, "--user", "54321"],
        &["--unit", "no-such.service"],
        &["--container", "0123456789ab"],
        &["--job", "no-such-job"],
    ] {
        assert_eq!(chosen(options, both), [false, false], "{options:?}");
    }
    let options = [
        "--older-than",
        "1ms",
        "--user",
        "root",
        "--match",
        "python3",
    ];
    assert_eq!(chosen(&options, both), [true, true]);
    // Deleted, it is held still.
    std::fs::remove_file(file).unwrap();
    assert_eq!(chosen(&["--holds", file], both), [true, false]);

    // The others show who holds it itself.
    let below = script.process("below");
    let shown = tree(&["--port", &port]);
    assert!(find(&shown.processes, below).is_some(), "{shown:?}");
    let living = shown.processes.iter().filter(|process| process.alive);
    assert_eq!(living.count(), 1, "{shown:?}");
    let dry: Value = ask("kill", &["--dry-run", "--port", &port]).success();
    assert_eq!(dry["members"][0]["pid"], below.pid, "{dry}");
    let gpu: Value = ask("gpu", &["--port", &port, "--device", file]).success();
    assert_eq!(gpu["holders"], Value::Array(Vec::new()), "{gpu}");
}

#[test]
fn what_is_killed_is_named() {
    let output = Lifemon::find().run(["kill", "--port", "8000"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    let output = Lifemon::find().run(["kill", "--port", "8000", "1"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("--dry-run"), "{output:?}");
}

#[test]
fn a_pod_needs_a_kubelet() {
    needs!(host_tracker);
    if std::path::Path::new("/var/log/pods").exists() {
        return;
    }
    let output = ask("orphans", &["--pod", "default/web-0"]);
    assert_eq!(output.code, Some(3), "{output:?}");
    assert!(output.stderr.contains("kubelet"), "{output:?}");
}

#[test]
fn units_containers_and_pods_are_told_by_control_groups() {
    needs!(bash, host_tracker);
    let sandbox = Sandbox::new();
    let (container, other) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
    let pod = "5b6d0f3a-91c2-4e7b-8a55-000000000001";
    let of_pod = pod.replace('-', "_");
    let names = [
        "web.service".to_owned(),
        format!("docker-{container}.scope"),
        format!("kubepods-besteffort-pod{of_pod}.slice"),
        // A name that is no text, at the side of a container's own.
        format!("cri-containerd-{other}.scope"),
    ];
    let groups = names.each_ref().map(|name| Group::new(&sandbox, name));
    let no_text = Group::new(
        &sandbox,
        groups[3].path().join(OsStr::from_bytes(b"a\xffb")),
    );
    let places = [
        groups[0].path(),
        groups[1].path(),
        groups[2].path(),
        no_text.path(),
    ];
    let members = places.map(|place| {
        let script = Script::start(&sandbox, "bash", "echo worker $$; echo ready; sleep 1000");
        let worker = script.process("worker");
        fs::write(place.join("cgroup.procs"), worker.pid.to_string()).expect("a group to join");
        (script, worker)
    });
    for (option, name, chosen) in [
        ("--unit", "web.service", Some(0)),
        ("--unit", "web", Some(0)),
        ("--unit", "we", None),
        ("--container", &container, Some(1)),
        ("--container", &container[..12], Some(1)),
        ("--pod", pod, Some(2)),
        ("--container", &other, Some(3)),
    ] {
        let shown = tree(&[option, name]);
        let found = members
            .each_ref()
            .map(|(_, worker)| find(&shown.processes, *worker).is_some());
        let expected = std::array::from_fn(|index| chosen == Some(index));
        assert_eq!(found, expected, "{option} {name} {shown:?}");
    }
}

#[test]
fn a_socket_is_found_in_another_network_namespace() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let text = r#"
import ctypes, os, socket, time
if os.fork() == 0:
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    kept = socket.socket()
    kept.bind(("0.0.0.0", 0)); kept.listen()
    print(f"port-{kept.getsockname()[1]} {os.getpid()}")
    print("ready", flush=True)
time.sleep(1000)
"#;
    let script = Script::start(&sandbox, "python3", text);
    let port = script.word("port-");
    let shown = tree(&["--port", &port]);
    let holder = script.process(&format!("port-{port}"));
    assert_eq!(shown.processes.len(), 1, "{shown:?}");
    assert_eq!(shown.processes[0].process(), holder);
}

#[test]
fn a_job_is_chosen_by_its_id() {
    needs!(bash, host_tracker);
    let sandbox = Sandbox::new();
    let text = "(SLURM_JOB_ID=4711-x sleep 1000 & echo worker $!); echo ready; sleep 1000";
    let script = Script::start(&sandbox, "bash", text);
    let worker = script.process("worker");
    for job in ["4711-x", "SLURM_JOB_ID=4711-x"] {
        // Between fork and exec it has the environment of the shell.
        lifemon_tests::wait_until("the job", lifemon_tests::DEADLINE, || {
            let report = orphans(&["--all", "--job", job]);
            report.orphans.len() == 1 && report.orphans[0].process() == worker
        });
    }
}

#[test]
fn equal_chains_are_one_line() {
    needs!(bash, host_tracker);
    let sandbox = Sandbox::new();
    let text = r#"
for i in 1 2 3 4 5 6 7 8; do
    bash -c 'bash -c "bash -c \"sleep 1000; true\"; true" & sleep 0.2; kill -9 $$' 2>/dev/null
done
echo ready
sleep 1000
"#;
    let script = Script::start(&sandbox, "bash", text);
    let tree = script.own().pid.to_string();
    let output = Lifemon::find().run(["orphans", "--tree", &tree]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let heads: Vec<_> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("leaked"))
        .collect();
    assert_eq!(heads.len(), 1, "{output:?}");
    assert!(
        heads[0].contains("bash -> bash -> sleep") && heads[0].contains("8 times"),
        "{output:?}"
    );
    assert_eq!(orphans(&["--tree", &tree]).orphans.len(), 8);
}

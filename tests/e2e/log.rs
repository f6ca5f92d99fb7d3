//! `lifemon log`: who died, and of what, although nothing of lifemon was running.

use lifemon_tests::left_behind::ask;
use lifemon_tests::{HostTracker, Lifemon, Sandbox, Script, needs};
use serde_json::Value;

/// Returns the entries of the log with these options.
#[track_caller]
fn entries(options: &[&str]) -> Vec<Value> {
    let report: Value = ask("log", options).success();
    assert_eq!(report["kind"], "log", "{report}");
    report["entries"].as_array().expect("a list").clone()
}

/// Returns the entry of one process.
fn of(entries: &[Value], pid: i32) -> Option<&Value> {
    entries.iter().find(|entry| entry["process"]["pid"] == pid)
}

/// Prints the pid of a process that has ended in one of the ways that follow.
const ENDS: &str = r#"
import ctypes, os, signal, sys, time
def ended(name, work):
    pid = os.fork()
    if pid == 0:
        os._exit(work() or 0)
    # Named while it is a zombie: the pid cannot be another's.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print(f"{name} {pid}", flush=True)
    return pid
def kill_itself(): os.kill(os.getpid(), signal.SIGKILL)
def leave(code):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"x")
        time.sleep(1000)
    os.read(reader, 1)
    return code
def parent():
    reader, writer = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        os.write(writer, str(os.getpid()).encode())
        time.sleep(1000)
    pid = int(os.read(reader, 10))
    os.write(told, str(pid).encode())
    return 0
"#;

#[test]
fn deaths_are_known_although_nobody_watched() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let text = format!(
        "{ENDS}
ended('killed', kill_itself)
ended('failed', lambda: 3)
ended('failed-leaving', lambda: leave(3))
ended('leaving', lambda: leave(0))
ended('well', lambda: 0)
print('ready', flush=True)
time.sleep(1000)"
    );
    let script = Script::start(&sandbox, "python3", &text);
    let all = entries(&["--since", "1m"]);
    let root = script.own().pid;
    let found = |name: &str| of(&all, script.process(name).pid);
    let killed = found("killed").expect("who was killed");
    assert_eq!(killed["exit"]["signal"], 9, "{killed}");
    assert_eq!(killed["exit"]["sender"]["pid"], killed["process"]["pid"]);
    assert_eq!(killed["creator"]["pid"], root, "{killed}");
    let failed = found("failed-leaving").expect("who failed");
    assert_eq!(
        (&failed["exit"]["code"], &failed["children"]),
        (&3.into(), &1.into())
    );
    let left = found("leaving").expect("who left one behind");
    assert_eq!(
        (&left["exit"]["code"], &left["children"]),
        (&0.into(), &1.into())
    );
    for unremarkable in ["failed", "well"] {
        assert_eq!(found(unremarkable), None);
    }
    let tree = entries(&["--tree", &root.to_string()]);
    assert_eq!(tree.len(), 3, "{tree:?}");
    assert_eq!(
        entries(&["--tree", &killed["process"]["pid"].to_string()]).len(),
        1
    );
    assert_eq!(entries(&["--user", "54321"]).len(), 0);
    let text = Lifemon::find().run(["log", "--tree", &root.to_string()]);
    assert!(text.stdout.contains("SIGKILL from"), "{text:?}");
    // Before tracking began nothing is known.
    let report: Value = ask("log", &["--since", "1000h"]).success();
    assert_eq!(report["incomplete"][0]["reason"], "no_history", "{report}");
    let status = Lifemon::find().run(["track", "status"]);
    assert!(status.stdout.contains("overwritten"), "{status:?}");
}

#[test]
fn a_death_by_parent_death_signal_is_named_so() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let text = format!(
        "{ENDS}
tell, told = os.pipe()
ended('parent', parent)
child = int(os.read(tell, 10))
print(f'child {{child}}')
print('ready', flush=True)
time.sleep(1000)"
    )
    // The child is dead by now, and nobody can say who it is but the log.
    .replace(
        "print(f'child {child}')",
        "print(f'child-{child} {os.getpid()}')",
    );
    let script = Script::start(&sandbox, "python3", &text);
    let child: i32 = script.word("child-").parse().unwrap();
    lifemon_tests::wait_until("the child's death", lifemon_tests::DEADLINE, || {
        of(&entries(&[]), child).is_some()
    });
    let all = entries(&[]);
    let entry = of(&all, child).unwrap();
    assert_eq!(entry["exit"]["signal"], 15, "{entry}");
    assert_eq!(entry["exit"]["parent_death"], true, "{entry}");
    let parent = script.process("parent").pid;
    assert_eq!(entry["exit"]["sender"]["pid"], parent, "{entry}");
    let text = Lifemon::find().run(["log"]);
    assert!(text.stdout.contains("parent-death signal"), "{text:?}");
}

#[test]
fn one_user_does_not_wash_out_another() {
    needs!(python, host_tracker);
    let sandbox = Sandbox::new();
    let text = format!(
        "{ENDS}
ended('killed', kill_itself)
if os.fork() == 0:
    os.setuid(54321)
    for each in range(5000):
        pid = os.fork()
        if pid == 0: os.kill(os.getpid(), 9)
        os.waitpid(pid, 0)
    os._exit(0)
while True:
    try:
        if os.waitpid(-1, 0)[0] == 0: break
    except ChildProcessError: break
print('ready', flush=True)
time.sleep(1000)"
    )
    .replace(
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n",
        "time.sleep(0.2)\n",
    );
    let script = Script::start(&sandbox, "python3", &text);
    let report: Value = ask("log", &[]).success();
    let all = report["entries"].as_array().unwrap();
    assert!(of(all, script.process("killed").pid).is_some());
    let storm = entries(&["--user", "54321"]).len() as u64;
    let overwritten = report["overwritten"].as_u64().unwrap();
    assert!((512..=4_096).contains(&storm), "{storm}");
    assert_eq!(storm + overwritten, 5_000);
    let since: Value = ask("log", &["--user", "54321", "--since", "1m"]).success();
    let reasons = since["incomplete"].to_string();
    assert!(reasons.contains("overwritten"), "{reasons}");
    let roots: Value = ask("log", &["--user", "0", "--since", "1ms"]).success();
    assert_eq!(roots["complete"], true, "{roots}");
}

#[test]
fn who_had_a_gpu_open_and_failed_is_recorded() {
    needs!(python);
    // `/dev/null` stands for a GPU.
    let _tracker = HostTracker::on(&["--log-device-major", "1"]);
    let sandbox = Sandbox::new();
    let text = format!(
        "{ENDS}
os.close(0); os.closerange(2, 256)
ended('without', lambda: 3)
ended('with', lambda: os.open('/dev/null', 0) and 3 or 3)
ended('well', lambda: os.open('/dev/null', 0) and 0)
print('ready', flush=True)
time.sleep(1000)"
    );
    let script = Script::start(&sandbox, "python3", &text);
    let all = entries(&[]);
    let entry = of(&all, script.process("with").pid).unwrap_or_else(|| panic!("{all:?}"));
    assert_eq!(entry["held_gpu"], true, "{entry}");
    assert_eq!(of(&all, script.process("without").pid), None);
    assert_eq!(of(&all, script.process("well").pid), None);
}

#[test]
fn the_recorder_is_in_the_tracker() {
    let tracker = HostTracker::off();
    let output = ask("log", &[]);
    assert_eq!(output.code, Some(3), "{output:?}");
    assert!(output.stderr.contains("lifemon track on"), "{output:?}");
    tracker.switch_on(&[]);
    let output = ask("log", &["--tree", "4194304"]);
    assert_eq!(output.code, Some(4), "{output:?}");
    tracker.switch_off();
}

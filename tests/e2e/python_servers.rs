//! Servers written in Python with its own `multiprocessing`, as users have them: killed, they leave
//! their workers behind, and those are found and killed while another server of the same kind goes
//! on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use lifemon_tests::killing::alive;
use lifemon_tests::left_behind::{ask, checked_orphans, kill_and_wait, orphans};
use lifemon_tests::reports::{Exit, Identified, Orphan, entry, set_of};
use lifemon_tests::{Actor, DEADLINE, Output, Process, Sandbox, needs, wait_until};

const SERVER: &str = include_str!("python/server.py");

/// A server that has made its workers.
#[track_caller]
fn server(sandbox: &Sandbox, method: &str) -> Actor {
    let file = sandbox.directory().join("server.py");
    fs::write(&file, SERVER).expect("a file in the sandbox");
    let words = [file.display().to_string(), method.to_owned()];
    let mut server = Actor::spawn(Path::new("python3"), sandbox, &words);
    server.step();
    server
}

/// Claims that a killed server has left this, and nobody above it lives.
#[track_caller]
fn assert_stranded_by(server: Process, orphan: &Orphan) {
    let creator = orphan.creator.as_ref().map(Identified::process);
    assert_eq!(creator, Some(server), "{orphan:?}");
    let signal = |exit: &Exit| exit.signal;
    let killed = orphan.creator_exit.as_ref().and_then(signal);
    assert_eq!(killed, Some(libc::SIGKILL), "{orphan:?}");
    assert_eq!(orphan.verdict, "leaked", "{orphan:?}");
}

/// Who died when orphans were killed.
#[track_caller]
fn dead(output: &Output) -> BTreeSet<Process> {
    let report = checked_orphans(output.report());
    set_of(&report.kill.expect("a kill").killed)
}

fn pgrep_finds_nobody_below(process: Process) {
    let pid = process.pid.to_string();
    if let Ok(output) = Command::new("pgrep").args(["-P", &pid]).output() {
        assert_eq!(output.stdout, b"", "{output:?}");
    }
}

#[test]
fn spawned_workers_of_a_killed_server() {
    needs!(multiprocessing, host_tracker);
    let sandbox = Sandbox::new();
    let healthy = server(&sandbox, "spawn");
    let before = alive(&sandbox);
    let broken = server(&sandbox, "spawn");
    let root = broken.process();
    kill_and_wait(root);
    let report = orphans(&["--tree", &root.pid.to_string()]);
    for worker in broken.children("worker") {
        let orphan = entry(&report.orphans, worker);
        assert_stranded_by(root, orphan);
        assert!(orphan.command.concat().contains("multiprocessing"));
    }
    pgrep_finds_nobody_below(root);
    // Python's own helper ends by itself when the server is dead; whatever is left is killed, and
    // below the workers their renamed children.
    let killed = ask("orphans", &["--tree", &root.pid.to_string(), "--kill"]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    let dead = dead(&killed);
    let workers: BTreeSet<_> = broken.children("worker").into_iter().collect();
    let grandchildren: BTreeSet<_> = broken.children("grandchild").into_iter().collect();
    assert_eq!(grandchildren.len(), 3);
    assert!(dead.is_superset(&workers) && dead.is_superset(&grandchildren));
    wait_until("only the healthy server", DEADLINE, || {
        alive(&sandbox) == before
    });
    drop(healthy);
}

#[test]
fn workers_of_a_forkserver() {
    needs!(multiprocessing, host_tracker);
    let sandbox = Sandbox::new();
    let broken = server(&sandbox, "forkserver");
    let root = broken.process();
    kill_and_wait(root);
    // The workers were created by the fork server, which outlives the server: that one is the
    // orphan, and the workers die with it.
    let tree = root.pid.to_string();
    let report = orphans(&["--tree", &tree, "--match", "forkserver"]);
    assert_stranded_by(root, &report.orphans[0]);
    pgrep_finds_nobody_below(root);
    let killed = ask("orphans", &["--tree", &tree, "--kill"]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    let dead = dead(&killed);
    for role in ["worker", "grandchild"] {
        let made: BTreeSet<_> = broken.children(role).into_iter().collect();
        assert!(made.len() == 3 && dead.is_superset(&made), "{killed:?}");
    }
    wait_until("the end of Python's helpers", DEADLINE, || {
        alive(&sandbox).is_empty()
    });
}

#[test]
fn forked_workers_of_a_data_loader_with_a_thread() {
    needs!(multiprocessing, host_tracker);
    let sandbox = Sandbox::new();
    let loader = server(&sandbox, "fork");
    let root = loader.process();
    kill_and_wait(root);
    let workers: BTreeSet<_> = loader.children("worker").into_iter().collect();
    let report = orphans(&[
        "--tree",
        &root.pid.to_string(),
        "--match",
        "server.py fork$",
    ]);
    assert_eq!(set_of(&report.orphans), workers);
    let killed = ask("orphans", &["--tree", &root.pid.to_string(), "--kill"]);
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert_eq!(alive(&sandbox), [].into());
}

//! `lifemon run` very often: every exit code, and a thousand runs that leave nothing.

use std::fs;

use lifemon_tests::bpf::Traces;
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{HostTracker, Lifemon, Sandbox, scaled};

#[test]
fn every_exit_code_is_the_commands_own() {
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::find().inside(&sandbox);
    for code in 0..=255 {
        let script = format!("exit {code}");
        let mut command = lifemon.command(["run", "--", "sh", "-c", &script]);
        let output = command.output().expect("lifemon starts");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}

/// Descriptors that this process has open: what lifemon leaves could keep a pipe.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("own descriptors")
        .count()
}

#[test]
fn a_thousand_runs_leave_nothing() {
    // Alone on the host, so that what is loaded afterwards is ours.
    let host = HostTracker::off();
    let before = Traces::now();
    let sandbox = Sandbox::new();
    let lifemon = Lifemon::find().inside(&sandbox);
    let open = descriptors();
    for round in 0..scaled(1_000) {
        let leaves = round % 50 == 0;
        let script = if leaves {
            "(setsid sleep 100 &); exit 1"
        } else {
            "exit 1"
        };
        let words = ["run", "--grace", "0", "--", "sh", "-c", script];
        let output = lifemon.command(words).output().expect("lifemon starts");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(output.stderr.is_empty(), !leaves, "{output:?}");
        if leaves {
            assert_nobody(&sandbox);
        }
    }
    assert_nobody(&sandbox);
    assert!(descriptors() <= open + 2, "descriptors stay open");
    before.assert_nothing_since();
    drop(host);
}

//! `track on --at-boot`: the unit of systemd, on a host whose `/etc` and `/run` are the test's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use lifemon_tests::Lifemon;
use lifemon_tests::Output;

use super::host::{Host, OPEN_TO_ALL};

const UNIT: &str = "/etc/systemd/system/lifemon-tracker.service";
const LINK: &str = "/etc/systemd/system/basic.target.wants/lifemon-tracker.service";

fn host() -> Host {
    let host = Host::new(Some(OPEN_TO_ALL));
    // A small guest has none.
    host.mounts.as_root(&["mkdir", "-p", "/etc"]);
    let mount = ["mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/etc"];
    host.mounts.as_root(&mount);
    host
}

/// A host where systemd seems to be the init.
fn host_with_systemd() -> Host {
    let mut host = host();
    host.install();
    let directory = ["mkdir", "-p", "/run/systemd/system", "/etc/systemd/system"];
    host.mounts.as_root(&directory);
    host
}

#[track_caller]
fn assert_refused(host: &Host, output: &Output, words: &str) {
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(1), ""),
        "{output:?}"
    );
    for part in [words, "nothing was changed"] {
        assert!(output.stderr.contains(part), "{part}: {output:?}");
    }
    _ = host.status().off();
}

#[test]
fn a_unit_is_written_and_enabled_and_off_takes_it_away() {
    let host = host_with_systemd();
    let words = ["track", "on", "--at-boot", "--max-processes", "4096"];
    let on = host.run(&words);
    assert!(on.stdout.contains(UNIT), "{on:?}");
    let unit = fs::read_to_string(host.mounts.path(UNIT)).expect("the unit");
    let program = host.program().display();
    let start = format!("ExecStart={program} track on --max-processes 4096\n");
    assert!(unit.contains(&start), "{unit}");
    let link = fs::read_link(host.mounts.path(LINK)).expect("a link");
    assert_eq!(link.to_str(), Some(UNIT));
    // What it starts is a command that works, and the second time changes nothing.
    let again = host.run(&words);
    assert!(again.stdout.contains("on already"), "{again:?}");

    assert_eq!(host.track("off").at_boot.as_deref(), Some(UNIT));
    for path in [UNIT, LINK] {
        assert!(
            fs::symlink_metadata(host.mounts.path(path)).is_err(),
            "{path}"
        );
    }
    assert_eq!(host.track("off").at_boot, None);
    host.before.assert_nothing_since();
}

#[test]
fn without_systemd_it_says_so_and_changes_nothing() {
    let host = host();
    let output = host.run(&["track", "on", "--at-boot"]);
    assert_refused(&host, &output, "systemd does not run here");
    assert!(!host.mounts.path("/etc/systemd").exists());
}

#[test]
fn a_unit_that_somebody_else_wrote_stays() {
    let host = host_with_systemd();
    let path = host.mounts.path(UNIT);
    fs::write(&path, "[Service]\n").expect("a unit");
    let output = host.run(&["track", "on", "--at-boot"]);
    assert_refused(&host, &output, "is not lifemon's");
    host.track("on");
    assert_eq!(host.track("off").at_boot, None);
    assert_eq!(fs::read_to_string(path).expect("the unit"), "[Service]\n");
}

#[test]
fn a_binary_that_others_can_change_is_not_started_as_root() {
    let host = host_with_systemd();
    host.mounts.as_root(&["mkdir", "-m", "777", "/run/open"]);
    let program = host.mounts.path("/run/open/lifemon");
    fs::copy(Lifemon::find().program(), &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut command = Lifemon::at("/run/open/lifemon".into()).command(["track", "on", "--at-boot"]);
    host.mounts.enter(&mut command);
    let output = Lifemon::find()
        .start(command)
        .finish(lifemon_tests::DEADLINE);
    assert_refused(
        &host,
        &output,
        "/run/open can be changed by others than root",
    );
}

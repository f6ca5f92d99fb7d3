//! The pins and the lock on a host with hostile users: what they make, rename or lock where lifemon
//! keeps its pins never decides what root deletes, waits for or misses. Each test has a mount
//! namespace of its own; the programs that it loads are the host's, so it has the tracker alone.

mod boot;
mod host;
mod lock;
mod versions;

use std::collections::BTreeSet;

use lifemon_tests::bpf::{BPF_FS, Traces};
use lifemon_tests::{DEADLINE, Lifemon, wait_until};

use host::{HOME, Host, OPEN_TO_ALL, OWN, assert_says};

#[test]
fn a_user_who_links_the_home_elsewhere_deletes_nothing() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_nobody(&["ln", "-s", host.victim(), HOME]);
    assert!(!host.track("off").changed);
    host.assert_nothing_deleted();
    host.assert_own_place("/sys/fs/bpf/lifemon is a symbolic link");
}

#[test]
fn a_user_who_makes_the_home_and_links_a_version_elsewhere_deletes_nothing() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_nobody(&["mkdir", HOME]);
    for version in ["v1", "v99", "building-1"] {
        let link = format!("{HOME}/{version}");
        host.mounts.as_nobody(&["ln", "-s", host.victim(), &link]);
    }
    assert!(!host.track("off").changed);
    host.assert_nothing_deleted();
    host.assert_own_place("/sys/fs/bpf/lifemon belongs to uid 65534");
}

#[test]
fn a_home_that_root_does_not_own_alone_is_not_used() {
    let host = Host::new(Some("mode=0700"));
    host.mounts.as_root(&["mkdir", "-m", "700", HOME]);
    for (change, why) in [
        (["chmod", "0770"], "may be written by others"),
        (["chmod", "0702"], "may be written by others"),
        (["chmod", "1777"], "may be written by others"),
        (["chmod", "0750"], "may be opened by others"),
        (["chmod", "0711"], "may be opened by others"),
        (["chown", "65534"], "belongs to uid 65534"),
    ] {
        host.mounts.as_root(&[change[0], change[1], HOME]);
        host.assert_on_in_own_place(why);
        host.assert_switched_off();
    }
}

#[test]
fn a_file_system_that_root_does_not_own_alone_is_not_used() {
    let host = Host::new(Some(OPEN_TO_ALL));
    // Mounting sets the sticky bit, whatever mode is asked for; root can take it away.
    for (change, why) in [
        (["chmod", "0777"], "/sys/fs/bpf may be written by others"),
        (["chmod", "0770"], "/sys/fs/bpf may be written by others"),
        (["chown", "65534"], "/sys/fs/bpf belongs to uid 65534"),
    ] {
        host.mounts.as_root(&[change[0], change[1], BPF_FS]);
        host.assert_on_in_own_place(why);
        host.assert_switched_off();
    }
}

#[test]
fn a_foreign_file_system_is_not_used() {
    let host = Host::new(None);
    let mount = ["mount", "-t", "tmpfs", "-o", "mode=0700", "none"];
    host.mounts.as_root(&[&mount[..], &[BPF_FS]].concat());
    host.assert_own_place("/sys/fs/bpf is not on the BPF file system");
    drop(host);
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_root(&["mkdir", "-m", "700", HOME]);
    host.mounts.as_root(&[&mount[..], &[HOME]].concat());
    host.assert_own_place("/sys/fs/bpf/lifemon is not on the BPF file system");
}

#[test]
fn a_read_only_file_system_does_not_keep_root_from_tracking() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts
        .as_root(&["mount", "-o", "remount,bind,ro", BPF_FS]);
    let on = host.track("on");
    assert_eq!(on.mounted.as_deref(), Some(OWN), "{on:?}");
    assert_says(on.distrusted.as_ref(), "/sys/fs/bpf/lifemon cannot be used");
    host.assert_used();
    host.assert_switched_off();
}

#[test]
fn without_any_trusted_place_it_is_refused_and_both_are_named() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_nobody(&["ln", "-s", host.victim(), HOME]);
    host.mounts
        .as_root(&["ln", "-s", host.victim(), "/run/lifemon"]);
    let output = host.run(&["track", "on"]);
    assert_eq!(output.code, Some(3), "{output:?}");
    for part in [HOME, "/run/lifemon is a symbolic link", "root"] {
        assert!(output.stderr.contains(part), "{part}: {output:?}");
    }
    host.before.assert_nothing_since();
    host.assert_nothing_deleted();
}

#[test]
fn in_a_sticky_file_system_nobody_can_take_the_tracker_away() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let on = host.track("on");
    assert_eq!((&on.mounted, &on.distrusted), (&None, &None));
    let directory = &host.status().on().directory;
    for words in [
        vec!["mv", HOME, "/sys/fs/bpf/other"],
        vec!["mv", directory, "/sys/fs/bpf/lifemon/v1"],
        vec!["rmdir", HOME],
        vec!["ls", HOME],
        vec!["mkdir", "/sys/fs/bpf/lifemon/v1"],
        vec!["chmod", "777", HOME],
    ] {
        assert!(!host.mounts.try_as_nobody(&words), "{words:?}");
    }
    host.assert_used();
    host.assert_switched_off();
}

#[test]
fn what_is_not_lifemons_in_its_home_is_refused_by_name() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let map = format!("{}/maps/OOM_VICTIMS", host.status().on().directory);
    let in_home = |name: &str| format!("{HOME}/{name}");
    // Links to a version, to a loader, to nothing of lifemon's; a directory with another name.
    for (make, name, why) in [
        (vec!["ln", "-s", host.victim()], "v99", "is a symbolic link"),
        (
            vec!["ln", "-s", host.victim()],
            "building-7",
            "is a symbolic link",
        ),
        (vec!["ln", "-s", host.victim()], "x", "is not lifemon's"),
        (vec!["mkdir"], "v99x", "is not lifemon's"),
        (
            vec!["mkdir", "-m", "770"],
            "v99",
            "may be written by others",
        ),
        (vec!["mv", &map], "v99", "is not a directory"),
    ] {
        let path = in_home(name);
        host.mounts.as_root(&[&make[..], &[&path]].concat());
        host.assert_refused(&path, why);
        let remove = if make[0] == "mkdir" { "rmdir" } else { "rm" };
        host.mounts.as_root(&[remove, &path]);
    }
    host.mounts.as_root(&["mkdir", &in_home("v99")]);
    host.mounts.as_root(&["chown", "65534", &in_home("v99")]);
    host.assert_refused(&in_home("v99"), "belongs to uid 65534");
    host.mounts.as_root(&["chown", "0", &in_home("v99")]);
    // Links below a version are removed, and lead nowhere.
    let link = in_home("v99/maps");
    host.mounts.as_root(&["ln", "-s", host.victim(), &link]);
    assert_eq!(host.track("on").removed, ["v99"]);
    host.assert_nothing_deleted();
    host.assert_switched_off();
}

#[test]
fn a_version_in_a_home_that_a_user_has_got_is_replaced_and_named() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let one = Traces::settled().since(&host.before);
    // As an older version left it that had taken a user's directory for its own.
    host.mounts.as_root(&["chmod", "755", HOME]);
    host.mounts.as_root(&["chown", "65534", HOME]);
    // A home that a user owns is not trusted.
    _ = host.status().off();
    let versions = host.mounts.path(HOME).read_dir().expect("a home");
    let version = versions.flatten().next().expect("a version").path();
    let version = format!("{HOME}/{}", version.file_name().expect("a name").display());
    host.mounts
        .as_nobody(&["mv", &version, "/sys/fs/bpf/lifemon/v6"]);
    host.mounts
        .as_nobody(&["ln", "-s", host.victim(), "/sys/fs/bpf/lifemon/v4"]);
    host.mounts.as_nobody(&["mkdir", "/sys/fs/bpf/lifemon/v5"]);
    let on = host.track("on");
    assert_eq!(on.removed, ["/sys/fs/bpf/lifemon/v6"], "{on:?}");
    assert_eq!(on.mounted.as_deref(), Some(OWN), "{on:?}");
    let count = |traces: &Traces| [&traces.programs, &traces.links].map(BTreeSet::len);
    wait_until("one tracker and no more", DEADLINE, || {
        count(&Traces::now().since(&host.before)) == count(&one)
    });
    host.assert_used();
    host.assert_switched_off();
    let text = host.run(&["track", "off"]).stdout;
    assert!(text.contains("belongs to uid 65534"), "{text}");
}

#[test]
fn another_mount_namespace_that_sees_no_tracker_takes_none_away() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_nobody(&["mkdir", HOME]);
    // With the same /run, made before lifemon's own file system is mounted: it is not there.
    let beside = host.mounts.beside();
    assert_eq!(host.track("on").mounted.as_deref(), Some(OWN));
    for word in ["off", "status"] {
        let mut command = Lifemon::find().command(["track", word]);
        beside.enter(&mut command);
        let output = Lifemon::find().start(command).finish(DEADLINE);
        assert!(output.stdout.contains("tracking"), "{output:?}");
    }
    _ = host.status().on();
    host.assert_used();
    host.assert_switched_off();
}

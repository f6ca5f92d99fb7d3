//! The pins and the lock on a host with hostile users: what they make, rename or lock where lifemon
//! keeps its pins never decides what root deletes, waits for or misses. Each test has a mount
//! namespace of its own; the programs that it loads are the host's, so it has the tracker alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::bpf::{BPF_FS, Traces};
use lifemon_tests::killing::assert_killed;
use lifemon_tests::{
    DEADLINE, HostTracker, Lifemon, Output, OwnMounts, Running, Sandbox, actor, poll, proc, scaled,
    stretched, wait_until,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const HOME: &str = "/sys/fs/bpf/lifemon";
const OWN: &str = "/run/lifemon/tracker/bpf";

/// For everybody: what a BPF file system is without options.
const OPEN_TO_ALL: &str = "mode=1777";

/// A host of its own, and what there was of BPF before it.
struct Host {
    mounts: OwnMounts,
    before: Traces,
    /// What a user wants root to empty.
    victim: PathBuf,
    _sandbox: Sandbox,
    _tracker: HostTracker,
}

impl Host {
    fn new(options: Option<&'static str>) -> Self {
        let tracker = HostTracker::off();
        let sandbox = Sandbox::new();
        let victim = sandbox.directory().join("victim");
        fs::create_dir_all(victim.join("maps/deeper")).expect("a directory");
        fs::write(victim.join("maps/file"), "precious").expect("a file");
        Self {
            mounts: OwnMounts::new(options),
            before: Traces::now(),
            victim,
            _sandbox: sandbox,
            _tracker: tracker,
        }
    }

    fn victim(&self) -> &str {
        self.victim.to_str().expect("a path in UTF-8")
    }

    #[track_caller]
    fn assert_nothing_deleted(&self) {
        let file = fs::read(self.victim.join("maps/file")).expect("a file that was kept");
        assert_eq!(file, b"precious");
        assert!(self.victim.join("maps/deeper").is_dir());
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Lifemon::find().command(words);
        self.mounts.enter(&mut command);
        command
    }

    #[track_caller]
    fn start(&self, words: &[&str]) -> Running {
        Lifemon::find().start(self.command(words))
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Output {
        self.start(words).finish(DEADLINE)
    }

    #[track_caller]
    fn track(&self, word: &str) -> Value {
        let output = self.run(&["track", word, "-o", "json"]);
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (Some(0), ""),
            "{output:?}"
        );
        output.json()
    }

    fn status(&self) -> Value {
        self.run(&["track", "status", "-o", "json"]).json()
    }

    /// Switches on where the host's file system cannot be trusted.
    #[track_caller]
    fn assert_on_in_own_place(&self, why: &str) {
        let off = self.status();
        assert_eq!(off["tracker"], "off", "{off}");
        assert_says(&off["distrusted"], why);
        let on = self.track("on");
        assert_eq!(
            (&on["changed"], &on["mounted"]),
            (&json!(true), &json!(OWN))
        );
        assert_says(&on["distrusted"], why);
    }

    /// Switches on where the host's file system cannot be trusted, uses that, and switches off.
    #[track_caller]
    fn assert_own_place(&self, why: &str) {
        self.assert_on_in_own_place(why);
        let status = self.status();
        assert_eq!(status["tracker"], "on", "{status}");
        let directory = status["directory"].as_str().expect("a directory");
        assert!(directory.starts_with(OWN), "{status}");
        self.assert_used();
        assert_eq!(self.track("on")["changed"], false);
        let text = self.run(&["track", "status"]).stdout;
        assert!(text.contains(why), "{text}");
        self.assert_switched_off();
    }

    #[track_caller]
    fn assert_used(&self) {
        let sandbox = Sandbox::new();
        let actor = actor!(sandbox, "pause");
        let pid = actor.pid().to_string();
        let mut stream = Lifemon::find().stream_of(self.command(&["attach", &pid, "-o", "json"]));
        assert_eq!(stream.attached()["tracker"], "host");
        drop(stream);
        let killed = self.run(&["kill", &pid, "-o", "json"]);
        assert_eq!(assert_killed(&killed).killed.len(), 1);
    }

    #[track_caller]
    fn assert_switched_off(&self) {
        assert_eq!(self.track("off")["changed"], true);
        self.before.assert_nothing_since();
        self.assert_nothing_deleted();
        assert!(!self.mounts.path("/run/lifemon").exists());
    }

    /// Claims that neither word changes anything, and that both name the path.
    #[track_caller]
    fn assert_refused(&self, path: &str, why: &str) {
        let before = Traces::now();
        for word in ["on", "off"] {
            let output = self.run(&["track", word]);
            assert_eq!((output.code, output.stdout.as_str()), (Some(3), ""));
            assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
            for part in [path, why, "remove it"] {
                assert!(output.stderr.contains(part), "{part}: {output:?}");
            }
        }
        before.assert_nothing_since();
        assert_eq!(Traces::now().since(&before), Traces::default());
        self.assert_nothing_deleted();
    }
}

#[track_caller]
fn assert_says(text: &Value, words: &str) {
    let found = text.as_str().is_some_and(|text| text.contains(words));
    assert!(found, "no {words:?}: {text}");
}

#[test]
fn a_user_who_links_the_home_elsewhere_deletes_nothing() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.mounts.as_nobody(&["ln", "-s", host.victim(), HOME]);
    assert_eq!(host.track("off")["changed"], false);
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
    assert_eq!(host.track("off")["changed"], false);
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
    assert_eq!(on["mounted"], OWN, "{on}");
    assert_says(&on["distrusted"], "/sys/fs/bpf/lifemon cannot be used");
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
    assert_eq!(
        (&on["mounted"], &on["distrusted"]),
        (&Value::Null, &Value::Null)
    );
    let directory = host.status()["directory"].clone();
    let directory = directory.as_str().expect("a directory");
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
    let directory = host.status()["directory"].clone();
    let map = format!(
        "{}/maps/OOM_VICTIMS",
        directory.as_str().expect("a directory")
    );
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
    assert_eq!(host.track("on")["removed"], json!(["v99"]));
    host.assert_nothing_deleted();
    host.assert_switched_off();
}

#[test]
fn a_version_in_a_home_that_a_user_has_got_is_replaced_and_named() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let one = Traces::now().since(&host.before);
    // As an older version left it that had taken a user's directory for its own.
    host.mounts.as_root(&["chmod", "755", HOME]);
    host.mounts.as_root(&["chown", "65534", HOME]);
    let directory = host.status()["directory"].clone();
    assert_eq!(
        directory,
        Value::Null,
        "a home that a user owns was trusted"
    );
    let versions = host.mounts.path(HOME).read_dir().expect("a home");
    let version = versions.flatten().next().expect("a version").path();
    let version = format!("{HOME}/{}", version.file_name().expect("a name").display());
    host.mounts
        .as_nobody(&["mv", &version, "/sys/fs/bpf/lifemon/v6"]);
    host.mounts
        .as_nobody(&["ln", "-s", host.victim(), "/sys/fs/bpf/lifemon/v5"]);
    host.mounts.as_nobody(&["mkdir", "/sys/fs/bpf/lifemon/v4"]);
    let on = host.track("on");
    assert_eq!(on["removed"], json!(["/sys/fs/bpf/lifemon/v6"]), "{on}");
    assert_eq!(on["mounted"], OWN, "{on}");
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
fn no_lock_that_users_can_take_is_waited_for() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let lock = |path: &str| {
        let directory = File::open(host.mounts.path(path)).expect("a directory for all");
        Flock::lock(directory, FlockArg::LockExclusive).expect("a lock for all")
    };
    // All that a user can open of the way to the pins.
    let locks = ["/sys/fs", BPF_FS, "/sys", "/", "/run"].map(lock);
    host.track("on");
    assert!(!host.mounts.try_as_nobody(&["ls", HOME]));
    let begun = Instant::now();
    host.assert_used();
    host.assert_switched_off();
    assert!(begun.elapsed() < stretched(Duration::from_secs(20)));
    drop(locks);
}

/// Runs a command against the lock that this process holds, as far as its message; then `end`s it.
#[track_caller]
fn assert_says_who_holds_it(host: &Host, words: &[&str], end: impl Fn(&mut Running)) -> Output {
    let home = File::open(host.mounts.path(HOME)).expect("a home");
    let lock = Flock::lock(home, FlockArg::LockExclusive).expect("a lock");
    let mut running = host.start(words);
    let holder = format!("(pid {})", std::process::id());
    wait_until("a message that names the holder", DEADLINE, || {
        running.stderr_so_far().contains(&holder)
    });
    end(&mut running);
    let begun = Instant::now();
    let output = running.finish(DEADLINE);
    assert!(
        begun.elapsed() < stretched(Duration::from_secs(2)),
        "{output:?}"
    );
    drop(lock);
    output
}

#[test]
fn who_waits_for_the_lock_says_for_whom_and_hears_ctrl_c() {
    let host = Host::new(Some(OPEN_TO_ALL));
    host.track("on");
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let pid = actor.pid().to_string();
    for words in [&["attach", &pid][..], &["kill", &pid]] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let output = assert_says_who_holds_it(&host, words, |running| running.signal(signal));
            assert_eq!(output.code, Some(1), "{output:?}");
            assert!(output.stderr.contains("interrupted"), "{output:?}");
        }
    }
    // These have nothing to give back: they end as programs do.
    for words in [["track", "on"], ["track", "off"]] {
        let output =
            assert_says_who_holds_it(&host, &words, |running| running.signal(Signal::SIGINT));
        assert_eq!(output.code, None, "{output:?}");
    }
    assert!(proc::is_running(actor.pid()));
    // Once it is free, those who wait go on.
    let home = File::open(host.mounts.path(HOME)).expect("a home");
    let lock = Flock::lock(home, FlockArg::LockExclusive).expect("a lock");
    let running = host.start(&["attach", &pid, "--for", "1ms", "-o", "json"]);
    thread::sleep(Duration::from_millis(100));
    drop(lock);
    let output = running.finish(DEADLINE);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    host.assert_switched_off();
}

#[test]
fn two_network_namespaces_share_one_lock() {
    let host = Host::new(Some(OPEN_TO_ALL));
    let other = host.mounts.in_another_network();
    host.track("on");
    let until = Instant::now() + Duration::from_secs(scaled(10).max(5));
    let killing = || {
        let mut kills = 0;
        while Instant::now() < until {
            let sandbox = Sandbox::new();
            let mut doomed = actor!(sandbox, "fork-hold", 4);
            doomed.step();
            let pid = doomed.pid().to_string();
            let report = assert_killed(&host.run(&["kill", &pid, "-o", "json"]));
            assert_eq!(report.killed.len(), 5, "{report:?}");
            let alive = poll(DEADLINE, || sandbox.pids().is_empty().then_some(()));
            assert!(alive.is_some(), "{:?} live: {report:?}", sandbox.pids());
            kills += 1;
        }
        kills
    };
    let attaching = || {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "fork-hold", 4);
        actor.step();
        let pid = actor.pid().to_string();
        let mut attaches = 0;
        while Instant::now() < until {
            let words = ["attach", &pid, "--for", "1ms", "-o", "json"];
            let mut command = Lifemon::find().command(words);
            other.enter(&mut command);
            let output = Lifemon::find().start(command).finish(DEADLINE);
            assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
            let first = output.stdout.lines().next().unwrap_or_default();
            let first: Value = serde_json::from_str(first).expect("an object a line");
            assert_eq!(first["tracker"], "host", "{first}");
            assert_eq!(first["complete"], true, "{first}");
            let members = first["members"].as_array().expect("members");
            assert_eq!(members.len(), 5, "{first}");
            attaches += 1;
        }
        attaches
    };
    let (kills, attaches) = thread::scope(|scope| {
        let attaching = scope.spawn(attaching);
        (killing(), attaching.join().expect("no false report"))
    });
    eprintln!("{kills} kills against {attaches} attaches");
    assert!(kills > 1 && attaches > 1, "{kills} {attaches}");
    assert_eq!(host.status()["watched_trees"], 0);
    host.assert_switched_off();
}

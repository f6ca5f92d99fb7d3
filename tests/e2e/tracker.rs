//! The tracker of the host: switched on and off without a trace, repaired when it is torn, killed
//! half made. Each test has the tracker to itself and ends with it off.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::bpf::{BPF_FS, Traces};
use lifemon_tests::reports::{Lost, TrackLost, TrackState};
use lifemon_tests::{
    DEADLINE, HostTracker, Lifemon, Sandbox, actor, can_preempt_tracepoints, needs, scaled,
    wait_until,
};

/// Returns the time of day of `since`, which is computed anew from the clock of the kernel each
/// time.
fn since_ns(time: &str) -> u64 {
    let numbers = time[11..29].split([':', '.']);
    let numbers: Vec<u64> = numbers.map(|part| part.parse().expect(time)).collect();
    ((numbers[0] * 60 + numbers[1]) * 60 + numbers[2]) * 1_000_000_000 + numbers[3]
}

/// Returns the directory of this version's pins: the only one there is.
fn version() -> PathBuf {
    let entries = fs::read_dir(Path::new(BPF_FS).join("lifemon")).expect("a tracker that is on");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

/// Waits until only as many programs, maps and links are there as one tracker has.
#[track_caller]
fn assert_one_tracker(tracker: &HostTracker, one: &Traces) {
    let count =
        |traces: &Traces| [&traces.programs, &traces.maps, &traces.links].map(BTreeSet::len);
    wait_until("one tracker and no more", DEADLINE, || {
        let now = Traces::now().since(tracker.before());
        (count(&now), &now.pins) == (count(one), &one.pins)
    });
}

/// Returns what one tracker is, when all that only loading needed is gone.
fn one_tracker(tracker: &HostTracker) -> Traces {
    Traces::settled().since(tracker.before())
}

#[test]
fn on_is_on_until_off_and_off_leaves_nothing() {
    let tracker = HostTracker::off();
    let off = tracker.ask_status();
    assert_eq!((off.code, off.stderr.as_str()), (Some(1), ""));
    assert_eq!(off.report::<TrackState>().off().problem, None);
    assert!(!tracker.switch_off().changed);

    let on = tracker.switch_on(&["--max-processes", "5000"]);
    assert_eq!((on.tracker.as_str(), on.changed), ("on", true));
    let loaded = Traces::now();
    let new = loaded.since(tracker.before());
    assert!(!new.programs.is_empty() && !new.maps.is_empty() && !new.links.is_empty());
    let again = tracker.switch_on(&[]);
    assert_eq!((again.tracker.as_str(), again.changed), ("on", false));
    loaded.assert_nothing_since();

    let status = tracker.status();
    assert_eq!(status.schema, "lifemon/2");
    assert_eq!((status.capacity, status.complete), (5000, true));
    let nothing = TrackLost {
        records: 0,
        missed_runs: 0,
    };
    assert_eq!(status.lost, nothing);
    assert!(status.processes >= 2, "{status:?}");
    assert!(status.forks >= 1 && status.exits >= 1, "{status:?}");
    assert_eq!((status.watched_trees, status.memberships), (0, 0));
    let hooks: Vec<_> = status.cost.iter().map(|cost| cost.hook.as_str()).collect();
    let mut expected = vec!["exit", "fork", "exec", "rename", "signal", "oom"];
    if can_preempt_tracepoints() {
        expected.push("exit-stand-in");
    }
    assert_eq!(hooks, expected);
    let since = again.since.as_deref().expect("a time");
    let apart_ns = since_ns(since).abs_diff(since_ns(&status.since));
    assert!(apart_ns < 1_000_000, "{again:?} {status:?}");

    assert!(tracker.switch_off().changed);
    tracker.before().assert_nothing_since();
    let off = tracker.ask_status();
    assert_eq!(off.code, Some(1));
    _ = off.report::<TrackState>().off();
    assert!(!tracker.switch_off().changed);
}

#[test]
fn attach_says_whose_tracker_it_uses() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    {
        needs!(private_tracker);
        let attached = Lifemon::find().attach(&actor.pid(), &[]).attached();
        assert_eq!(attached.tracker, "private");
    }
    let tracker = HostTracker::on(&[]);
    let before = Traces::now();
    let mut stream = Lifemon::find().attach(&actor.pid(), &[]);
    assert_eq!(stream.attached().tracker, "host");
    // Its ring is all that it brings and keeps.
    wait_until("one map more and nothing else", DEADLINE, || {
        let new = Traces::now().since(&before);
        (new.programs.len(), new.maps.len(), new.links.len()) == (0, 1, 0)
    });
    drop(stream);
    before.assert_nothing_since();
    drop(tracker);
}

#[test]
fn a_torn_tracker_is_told_and_repaired() {
    let tracker = HostTracker::on(&[]);
    let one = one_tracker(&tracker);
    for pin in [
        "maps/LINEAGE",
        "links/fork",
        "links/learn",
        "programs/exit",
        "programs/sweep",
    ] {
        fs::remove_file(version().join(pin)).expect("a pin");
        let status = tracker.ask_status();
        assert_eq!((status.code, status.stderr.as_str()), (Some(1), ""));
        let problem = status.report::<TrackState>().off().problem;
        let problem = problem.expect("a problem");
        for word in ["torn", pin, "lifemon track on"] {
            assert!(problem.contains(word), "{problem}");
        }
        let on = tracker.switch_on(&[]);
        assert!(on.changed, "{on:?}");
        assert_eq!(on.repaired.as_deref(), Some(pin), "{on:?}");
        assert_one_tracker(&tracker, &one);
        _ = tracker.status();
    }
    fs::remove_file(version().join("links/exit")).expect("a pin");
    let text = Lifemon::find().run(["track", "on"]);
    assert!(
        text.stdout.contains("torn") && text.stdout.contains("links/exit"),
        "{text:?}"
    );
    // A torn one is switched off like any other.
    fs::remove_dir_all(version().join("maps")).expect("pins");
    assert!(tracker.switch_off().changed);
    tracker.before().assert_nothing_since();
}

#[test]
fn another_version_is_replaced() {
    let tracker = HostTracker::on(&[]);
    let one = one_tracker(&tracker);
    let other = Path::new(BPF_FS).join("lifemon/v999");
    for parts in [&[][..], &["maps", "links"]] {
        fs::create_dir(&other).expect("a directory");
        for part in parts {
            fs::create_dir(other.join(part)).expect("a directory");
        }
        let on = tracker.switch_on(&[]);
        assert_eq!(on.removed, ["v999"], "{on:?}");
        assert!(!other.exists());
        assert_one_tracker(&tracker, &one);
    }
    // With nothing but the other one there, whose programs run.
    fs::rename(version(), &other).expect("another name");
    let status = tracker.ask_status();
    assert_eq!(status.code, Some(1));
    let problem = status.report::<TrackState>().off().problem;
    let problem = problem.expect("a problem");
    assert!(
        problem.contains("v999") && problem.contains("lifemon track on"),
        "{problem}"
    );
    let on = tracker.switch_on(&[]);
    assert!(on.changed, "{on:?}");
    assert_eq!(on.removed, ["v999"], "{on:?}");
    assert_one_tracker(&tracker, &one);

    fs::create_dir(&other).expect("a directory");
    let text = Lifemon::find().run(["track", "on"]);
    assert!(text.stdout.contains("v999"), "{text:?}");
    fs::create_dir(&other).expect("a directory");
    tracker.switch_off();
    tracker.before().assert_nothing_since();
}

/// Directories of another version, removed at the end whatever lifemon has done with them.
struct Directories(Vec<PathBuf>);

impl Drop for Directories {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn another_version_may_be_laid_out_otherwise() {
    let tracker = HostTracker::on(&[]);
    let root = Path::new(BPF_FS).join("lifemon");
    let paths = ["v999", "v999/maps", "v999/maps/deeper"].map(|path| root.join(path));
    let directories = Directories(paths.into());
    let make = || {
        for path in &directories.0 {
            fs::create_dir(path).expect("a directory");
        }
    };
    make();
    let on = tracker.switch_on(&[]);
    assert_eq!(on.removed, ["v999"], "{on:?}");
    make();
    tracker.switch_off();
    tracker.before().assert_nothing_since();
}

#[test]
fn a_loader_killed_at_any_moment_leaves_nothing_that_stays() {
    let rounds = u32::try_from(scaled(20).max(6)).expect("few");
    let tracker = HostTracker::off();
    let lifemon = Lifemon::find();
    let start = Instant::now();
    tracker.switch_on(&[]);
    let whole = start.elapsed();
    tracker.switch_off();
    for round in 0..rounds {
        let loader = lifemon.start(lifemon.command(["track", "on"]));
        // Every part of its life, and a little after it.
        thread::sleep(whole * (round * 7 % rounds) / (rounds - 2));
        loader.kill();
        // Every other time the next loader finds what two have left.
        if round % 2 == 0 {
            continue;
        }
        tracker.switch_on(&[]);
        assert_eq!(tracker.ask_status().code, Some(0));
        tracker.switch_off();
        tracker.before().assert_nothing_since();
    }
}

/// Claims that a watcher of a tracker that was removed ends, and says that it has lost events.
#[track_caller]
fn assert_ends_a_watcher(tracker: &HostTracker, remove: impl FnOnce()) {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let mut stream = Lifemon::find().attach(&actor.pid(), &[]);
    stream.attached();
    remove();
    let start = Instant::now();
    let lost = stream.wait_for_line::<Lost>("the loss", |_| true);
    let finished = stream.finish();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(lost.reason, "switched_off", "{lost:?}");
    assert!(!lost.complete, "{lost:?}");
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(!finished.detached().complete);
    tracker.switch_off();
    tracker.before().assert_nothing_since();
}

#[test]
fn switching_off_ends_a_watcher() {
    let tracker = HostTracker::on(&[]);
    assert_ends_a_watcher(&tracker, || _ = tracker.switch_off());
}

#[test]
fn replacing_a_torn_tracker_ends_its_watchers() {
    let tracker = HostTracker::off();
    for word in ["on", "off"] {
        tracker.switch_on(&[]);
        assert_ends_a_watcher(&tracker, || {
            fs::remove_file(version().join("links/exec")).expect("a pin");
            assert_eq!(Lifemon::find().run(["track", word]).code, Some(0));
        });
    }
}

#[test]
fn switching_on_and_off_at_once_does_not_fail() {
    let tracker = HostTracker::off();
    let switch = |word: &'static str| {
        move || {
            let outputs = (0..scaled(10).max(3)).map(|_| Lifemon::find().run(["track", word]));
            outputs
                .filter(|output| output.code != Some(0))
                .collect::<Vec<_>>()
        }
    };
    let switches: Vec<_> = ["on", "off", "on", "off"]
        .map(|word| thread::spawn(switch(word)))
        .into();
    for switch in switches {
        let failures = switch.join().expect("no panic");
        assert!(failures.is_empty(), "{failures:?}");
    }
    tracker.switch_on(&[]);
    _ = tracker.status();
}

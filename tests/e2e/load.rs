//! Many processes at once against the real kernel: none is missed, none is told twice, and joining
//! a tree that never stands still misses nobody who was there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lifemon_tests::reports::{Exited, Fork, Gone, Identified as _};
use lifemon_tests::{
    DEADLINE, Process, Sandbox, Story, Watching, actor, needs, on_every_path, wait_until,
};
use serde_json::json;

on_every_path!(a_short_burst_is_told_to_the_last);

fn a_short_burst_is_told_to_the_last(options: &[&str]) {
    burst(lifemon_tests::scaled(2_000).max(400), options);
}

#[test]
fn a_burst_of_20_000_is_told_to_the_last() {
    burst(lifemon_tests::scaled(20_000), &[]);
}

/// Child number i of the actor exits with i % 7, at most 32 live at once.
#[track_caller]
fn burst(count: u64, options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "burst", count);
    let root = actor.process();
    let watching = Watching::with(&actor, options);
    actor.step();
    let made = actor.wait_for("created", |line| line["created"].is_u64());
    assert_eq!(made["created"], count);
    actor.close();
    let story = watching.until_extinct();

    assert_eq!(story.count::<Fork>() as u64, count);
    assert!(story.all::<Fork>().all(|fork| fork.is_by(root)));
    let mut codes = vec![0_u64; 7];
    let exits = story.all::<Exited>();
    for exit in exits.filter(|exit| exit.process.process() != root) {
        let death = exit.death();
        assert_eq!(death.cause, "exited", "{exit:?}");
        codes[usize::try_from(death.code.expect("a code")).expect("a code")] += 1;
    }
    assert_eq!(json!(codes), made["codes"]);
    assert_eq!(codes.iter().sum::<u64>(), count);
    assert_eq!(story.count::<Gone>() as u64, count + 1);
    assert_eq!(story.summary().seen, count + 1);
}

/// A process that the actor made, as it entered itself into the actor's log before its end.
struct Entry {
    process: Process,
    creator: i32,
}

fn log(path: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [pid, start_ticks, creator] = words[..] else {
            panic!("no entry: {line:?}")
        };
        Entry {
            process: Process {
                pid: pid.parse().expect("a pid"),
                start_ticks: start_ticks.parse().expect("ticks"),
            },
            creator: creator.parse().expect("a pid"),
        }
    };
    text.lines().map(entry).collect()
}

/// Complete entries so far, without parsing what is still being written.
fn entries(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.matches('\n').count()
}

#[test]
fn attaching_to_a_tree_that_never_stands_still_misses_nobody() {
    // Before the trees begin to move: pids come round again while we wait for the lock.
    needs!(private_tracker);
    for round in 0..lifemon_tests::scaled(20) {
        let sandbox = Sandbox::new();
        let path = sandbox.directory().join("log");
        let mut actor = actor!(sandbox, "forever-forking", 60_000, path.display(), 200_000);
        let root = actor.process();
        actor.send("go");
        // Another moment of the tree in each round.
        let begun = 50 + 7 * usize::try_from(round).expect("few");
        wait_until("a tree in motion", DEADLINE, || entries(&path) > begun);
        let watching = Watching::of(&actor);
        let attached_at = entries(&path);
        wait_until("motion while attached", DEADLINE, || {
            entries(&path) > attached_at + 400
        });
        actor.command("stop");
        actor.close();
        // It has checked that everybody told has exactly one exit and is gone after it.
        let story = watching.until_extinct();
        // At most 16 of the 400 were alive before.
        let forks = story.count::<Fork>();
        assert!(forks >= 300, "round {round}: only {forks}");
        let log = log(&path);
        assert_nobody_is_missing(&story, root, &log, attached_at);
        assert_nobody_is_invented(&story, root, &log);
    }
}

/// Who may be missing from what was told: who entered the log before it was read at
/// `attached_at`, after the `attached` line, and so may have been dead by then; and an orphan of
/// such a one, if its creator died before there was a tracker to know whose child it was.
#[track_caller]
fn assert_nobody_is_missing(story: &Story, root: Process, log: &[Entry], attached_at: usize) {
    let told: BTreeSet<_> = story.processes().iter().map(|id| id.pid).collect();
    let forks = story.all::<Fork>();
    let forked: BTreeSet<_> = forks.map(|fork| fork.process.pid).collect();
    // Nowhere near enough processes for a pid to be used twice.
    let is_told = |pid: i32| told.contains(&pid);
    for (at, entry) in log
        .iter()
        .enumerate()
        .filter(|(_, entry)| !is_told(entry.process.pid))
    {
        let may_be_dead = at < attached_at && !forked.contains(&entry.creator);
        let may_be_unknown = entry.creator != root.pid && !is_told(entry.creator);
        assert!(
            may_be_dead || may_be_unknown,
            "missed: {:?} by {}, entry {at}, attached before {attached_at}: {:?}",
            entry.process,
            entry.creator,
            story.attached(),
        );
    }
}

/// Everybody told is in the log, under the same identity and with the same creator.
#[track_caller]
fn assert_nobody_is_invented(story: &Story, root: Process, log: &[Entry]) {
    let creators: BTreeMap<_, _> = log
        .iter()
        .map(|entry| (entry.process, entry.creator))
        .collect();
    assert_eq!(creators.len(), log.len(), "one entry a process");
    for exit in story.all::<Exited>() {
        let process = exit.process.process();
        if process != root {
            let creator = creators.get(&process);
            let creator = *creator.unwrap_or_else(|| panic!("not of the tree: {exit:?}"));
            let told = exit.creator.as_ref().map(|creator| creator.pid);
            assert_eq!(told, Some(creator), "{exit:?}");
            assert_eq!(exit.process.name.as_deref(), Some("actor"), "{exit:?}");
            assert_eq!(exit.process.ns_pid, Some(process.pid), "{exit:?}");
        }
    }
}

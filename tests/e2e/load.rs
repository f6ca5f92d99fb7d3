//! Many processes at once against the real kernel: none is missed, none is told twice, and joining
//! a tree that never stands still misses nobody who was there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lifemon_tests::story::{self, is_about};
use lifemon_tests::{DEADLINE, Process, Sandbox, Watching, actor, on_both_paths, wait_until};
use serde_json::json;

on_both_paths!(a_short_burst_is_told_to_the_last);

fn a_short_burst_is_told_to_the_last(options: &[&str]) {
    burst(2_000, options);
}

#[test]
fn a_burst_of_20_000_is_told_to_the_last() {
    burst(20_000, &[]);
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

    assert_eq!(story.count("fork") as u64, count);
    assert!(
        story
            .all("fork")
            .all(|fork| is_about(&fork["creator"], root))
    );
    let mut codes = vec![0_u64; 7];
    for exit in story
        .all("exit")
        .filter(|exit| !is_about(&exit["process"], root))
    {
        assert_eq!(exit["exit"]["cause"], "exited", "{exit}");
        codes[exit["exit"]["code"].as_u64().expect("a code") as usize] += 1;
    }
    assert_eq!(json!(codes), made["codes"]);
    assert_eq!(codes.iter().sum::<u64>(), count);
    assert_eq!(story.count("gone") as u64, count + 1);
    assert_eq!(story.summary()["seen"], count + 1);
}

/// `PID START_TICKS` of every process that the actor made, each written by itself before its end.
fn log(path: &std::path::Path) -> Vec<Process> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let (pid, ticks) = line.split_once(' ').expect("two words");
        Process {
            pid: pid.parse().expect("a pid"),
            start_ticks: ticks.parse().expect("ticks"),
        }
    };
    text.lines().map(entry).collect()
}

#[test]
fn attaching_to_a_tree_that_never_stands_still_misses_nobody() {
    let mut missed_before = 0;
    for round in 0..20 {
        let sandbox = Sandbox::new();
        let path = sandbox.directory().join("log");
        let mut actor = actor!(sandbox, "forever-forking", 10_000, path.display());
        let root = actor.process();
        actor.send("go");
        // Another moment of the tree in each round.
        let begun = 50 + 7 * round;
        wait_until("a tree in motion", DEADLINE, || log(&path).len() > begun);
        let watching = Watching::of(&actor);
        let attached_at = log(&path).len();
        wait_until("motion while attached", DEADLINE, || {
            log(&path).len() > attached_at + 300
        });
        actor.command("stop");
        actor.close();
        let story = watching.until_extinct();

        let log = log(&path);
        let logged: BTreeSet<_> = log.iter().copied().collect();
        assert_eq!(logged.len(), log.len());
        let told: BTreeMap<_, _> = story
            .processes()
            .into_iter()
            .map(|(pid, start_ns)| {
                let process = story::process(&json!({"pid": pid, "start_ns": start_ns}));
                (process.expect("a process"), start_ns)
            })
            .collect();
        let strangers: Vec<_> = told
            .keys()
            .filter(|process| **process != root && !logged.contains(process))
            .collect();
        assert!(
            strangers.is_empty(),
            "round {round}: not of the tree: {strangers:?}"
        );
        // Who wrote its line after `attached` was read lived when it was said. Of those before
        // only the dead can be missing, and they are all that is.
        let missed: Vec<_> = (0..log.len())
            .filter(|at| !told.contains_key(&log[*at]))
            .collect();
        let late = missed.iter().filter(|at| **at >= attached_at);
        let late: Vec<_> = late.map(|at| (at, log[*at])).collect();
        if !late.is_empty() { fs::write("/tmp/e2ea.story", story.events().iter().map(|e| e.to_string()).collect::<Vec<_>>().join("\n")).unwrap(); fs::write("/tmp/e2ea.log", log.iter().map(|p| format!("{} {}\n", p.pid, p.start_ticks)).collect::<String>()).unwrap(); }
assert!(late.is_empty(), "round {round}: missed after {attached_at}: {late:?}");
        missed_before += missed.len();
        assert!(story.count("fork") >= 300, "round {round}");
        // The story has checked that everybody told has exactly one exit and is gone.
        assert_eq!(story.count("exit"), told.len());
    }
    assert!(
        missed_before > 0,
        "every process of before lived on: the rounds prove nothing"
    );
}

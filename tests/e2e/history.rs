//! What the tracker of the host remembers while no lifemon process runs: dead creators, how they
//! died, whole chains of them, and never more of it than the living need.

use std::collections::BTreeSet;

use lifemon_tests::story::{is_about, process, processes};
use lifemon_tests::{Actor, HostTracker, Lifemon, Process, Sandbox, actor, on_every_path};
use serde_json::Value;

/// Ghosts and processes of others on this host that may come and go during a test.
const NOISE: u64 = 64;

/// The tree of a process now.
fn snapshot(actor: &Actor) -> Value {
    Lifemon::find().attach(&actor.pid(), &[]).attached()
}

fn set(array: &Value) -> BTreeSet<Process> {
    processes(array).into_iter().collect()
}

fn find(array: &Value, process: Process) -> &Value {
    let mut all = array.as_array().expect("an array").iter();
    all.find(|entry| is_about(entry, process))
        .unwrap_or_else(|| panic!("no {process:?} in {array}"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn tracking_needs_no_process() {
    let tracker = HostTracker::off();
    let sandbox = Sandbox::new();
    let on = Lifemon::find().inside(&sandbox).run(["track", "on"]);
    assert_eq!((on.code, on.stderr.as_str()), (Some(0), ""));
    assert!(sandbox.pids().is_empty(), "{:?}", sandbox.pids());
    assert_eq!(tracker.status()["tracker"], "on");
}

fn a_dead_creator_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));

    let tree = snapshot(&actor);
    assert_eq!(set(&tree["members"]), [actor.process(), grandchild].into());
    assert_eq!(set(&tree["ghosts"]), [middle].into());
    let ghost = find(&tree["ghosts"], middle);
    assert!(is_about(&ghost["creator"], actor.process()), "{ghost}");
    assert_eq!(ghost["exit"]["code"], 0, "{ghost}");
    assert_eq!(ghost["exit"]["cause"], "exited", "{ghost}");
    assert!(ghost["died"].is_string(), "{ghost}");
    let orphan = find(&tree["members"], grandchild);
    assert!(is_about(&orphan["creator"], middle), "{orphan}");
    assert!(
        [ghost, orphan]
            .iter()
            .all(|entry| entry.get("inferred").is_none())
    );
    assert_eq!(tree["complete"], true);
}

fn who_killed_a_ghost_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "subreaper");
    actor.step();
    let (middle, worker) = (actor.child("middle"), actor.child("worker"));
    actor.step();

    let tree = snapshot(&actor);
    assert_eq!(set(&tree["members"]), [actor.process(), worker].into());
    let exit = &find(&tree["ghosts"], middle)["exit"];
    assert_eq!(exit["signal"], libc::SIGKILL, "{exit}");
    assert_eq!(exit["signal_name"], "SIGKILL", "{exit}");
    assert_eq!(exit["cause"], "signal", "{exit}");
    assert!(is_about(&exit["sender"], actor.process()), "{exit}");
}

fn a_whole_chain_of_dead_creators_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "chain", 4);
    actor.step();
    let (first, last) = (actor.child("first"), actor.child("last"));

    let tree = snapshot(&actor);
    assert_eq!(set(&tree["members"]), [actor.process(), last].into());
    assert_eq!(tree["ghosts"].as_array().map(Vec::len), Some(3), "{tree}");
    let mut at = find(&tree["members"], last);
    for _ in 0..3 {
        let creator = process(&at["creator"]).expect("a creator");
        at = find(&tree["ghosts"], creator);
        assert_eq!(at["exit"]["code"], 0, "{at}");
        assert!(at.get("elided").is_none(), "{at}");
    }
    assert!(is_about(at, first), "{at}");
    assert!(is_about(&at["creator"], actor.process()), "{at}");
}

on_every_path! {
    a_dead_creator_is_remembered,
    who_killed_a_ghost_is_remembered,
    a_whole_chain_of_dead_creators_is_remembered,
    a_ghost_can_be_the_root,
    ghosts_do_not_pile_up,
}

fn a_ghost_can_be_the_root(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "three-children", 4);
    actor.step();
    let (middle, workers) = (actor.child("middle"), actor.children("worker"));
    let tree = snapshot(&actor);
    let start_ns = &find(&tree["members"], middle)["start_ns"];
    actor.step();
    assert_eq!(actor.reaped(middle.pid)["code"], 4);

    let mut stream = Lifemon::find().attach(&format!("{}@{start_ns}", middle.pid), &[]);
    let tree = stream.attached();
    assert!(
        is_about(&tree["tree"], middle) && is_about(&tree["root"], middle),
        "{tree}"
    );
    assert!(
        is_about(&tree["root"]["creator"], actor.process()),
        "{tree}"
    );
    assert_eq!(set(&tree["members"]), workers.iter().copied().collect());
    assert_eq!(find(&tree["ghosts"], middle)["exit"]["code"], 4, "{tree}");

    // Of the sandbox, and children of no test: ended with it, all at once.
    drop(sandbox);
    let finished = stream.finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let all = |word: &str| {
        let events = finished
            .events
            .iter()
            .filter(|event| event["event"] == word);
        events
            .map(|event| event["process"].clone())
            .collect::<Value>()
    };
    assert_eq!(set(&all("exit")), workers.iter().copied().collect());
    assert_eq!(all("extinct").as_array().map(Vec::len), Some(1));
}

fn ghosts_do_not_pile_up(options: &[&str]) {
    let generations = lifemon_tests::scaled(10_000);
    let tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let before = tracker.status();
    let mut actor = actor!(sandbox, "chain", generations);
    actor.send("go");
    let (first, last) = (actor.child("first"), actor.child("last"));
    actor.finish_step();

    let tree = snapshot(&actor);
    assert_eq!(set(&tree["members"]), [actor.process(), last].into());
    let ghosts = tree["ghosts"].as_array().expect("ghosts");
    assert!(ghosts.len() <= 16, "{} ghosts", ghosts.len());
    // Nobody between the last and the actor is forgotten: a ghost, or counted below one.
    let mut known = 0;
    let mut at = find(&tree["members"], last);
    while !is_about(&at["creator"], actor.process()) {
        known += 1 + at.get("elided").map_or(0, number);
        at = find(&tree["ghosts"], process(&at["creator"]).expect("a creator"));
    }
    known += at.get("elided").map_or(0, number);
    assert!(is_about(at, first), "{at}");
    assert_eq!(known, generations - 1);
    let full = tracker.status();
    assert!(
        number(&full["ghosts"]) <= number(&before["ghosts"]) + NOISE,
        "{full}"
    );
    assert!(number(&full["forks"]) >= number(&before["forks"]) + generations);
    assert_eq!(full["complete"], true, "{full}");

    drop(sandbox);
    drop(actor);
    let records = |status: &Value| number(&status["processes"]) + number(&status["ghosts"]);
    let after = tracker.status();
    assert!(
        records(&after) <= records(&before) + NOISE,
        "{before} {after}"
    );
}

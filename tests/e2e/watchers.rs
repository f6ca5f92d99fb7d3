//! Many watchers on the one tracker of the host: at once, overlapping, one too many, stopped,
//! killed. Each sees all of its own tree and nothing else, whatever happens to the others.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use lifemon_tests::story::{is_about, process, processes};
use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Process, Sandbox, Stream, actor, needs, on_every_path,
    scaled,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn attach(process: Process, options: &[&str]) -> Stream {
    Lifemon::find().attach(&process.pid, options)
}

#[track_caller]
fn wait_for_exit(stream: &mut Stream, dead: Process) {
    stream.wait_for(&format!("exit of {dead:?}"), |event| {
        event["event"] == "exit" && is_about(&event["process"], dead)
    });
}

/// The processes of all events of this kind, each named once.
#[track_caller]
fn subjects(events: &[Value], word: &str) -> BTreeSet<Process> {
    let of_kind = events.iter().filter(|event| event["event"] == word);
    let all: Vec<_> = of_kind
        .map(|event| process(&event["process"]).expect("a process"))
        .collect();
    let once: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(once.len(), all.len(), "{word} of one process twice");
    once
}

/// The processes that the nested actor's children with these roles were.
fn with_roles(actor: &Actor, roles: &[&str]) -> BTreeSet<Process> {
    roles.iter().flat_map(|role| actor.children(role)).collect()
}

fn five_watchers_each_see_their_own_tree(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let (sandbox, other_sandbox) = (Sandbox::new(), Sandbox::new());
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let (mid, leaf) = (actor.child("mid"), actor.child("leaf"));
    let mut other = actor!(other_sandbox, "fork-wait", 20, 7);

    let root = actor.process();
    let mut streams = [root, mid, leaf, root, mid].map(|process| (process, attach(process, &[])));
    for (process, stream) in &mut streams {
        assert!(is_about(&stream.attached()["tree"], *process));
    }
    for command in [
        "spawn-mid",
        "spawn-leaf",
        "spawn-mid",
        "spawn-leaf",
        "spawn-leaf",
    ] {
        actor.command(command);
    }
    other.step();
    actor.command("spawn-leaf");

    let last = *actor.children("leaf-child").last().expect("reported");
    let all = with_roles(&actor, &["mid-child", "leaf-child"]);
    assert_eq!(all.len(), 6);
    for (watched, mut stream) in streams {
        wait_for_exit(&mut stream, last);
        stream.interrupt();
        let finished = stream.finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let expected = if watched == leaf {
            with_roles(&actor, &["leaf-child"])
        } else {
            all.clone()
        };
        for word in ["fork", "exit"] {
            assert_eq!(
                subjects(&finished.events, word),
                expected,
                "{word} of {watched:?}"
            );
        }
        let summary = finished.events.last().expect("a summary");
        assert_eq!(
            (&summary["event"], &summary["complete"]),
            (&"detached".into(), &true.into())
        );
    }
}

on_every_path!(five_watchers_each_see_their_own_tree);

#[test]
fn the_eighth_on_one_tree_is_refused_and_a_kill_is_not() {
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let (root, mid, leaf) = (actor.process(), actor.child("mid"), actor.child("leaf"));
    // Each of them has the leaf in its tree.
    let mut seven: Vec<_> = [root, mid, leaf, root, mid, leaf, root]
        .map(|process| attach(process, &[]))
        .into();
    for stream in &mut seven {
        stream.attached();
    }
    assert_eq!(tracker.status()["watched_trees"], 7);

    for process in [root, leaf] {
        let eighth = Lifemon::find().run(["attach", &process.pid.to_string()]);
        assert_eq!((eighth.code, eighth.stdout.as_str()), (Some(1), ""));
        assert_eq!(eighth.stderr.lines().count(), 1, "{}", eighth.stderr);
        assert!(
            eighth.stderr.contains("overlaps with 7 others"),
            "{}",
            eighth.stderr
        );
        assert!(
            eighth.stderr.contains("end one of them first"),
            "{}",
            eighth.stderr
        );
    }
    let other = actor!(sandbox, "pause");
    attach(other.process(), &[]).attached();

    actor.command("spawn-leaf");
    let child = actor.child("leaf-child");
    for stream in &mut seven {
        wait_for_exit(stream, child);
    }
    seven.pop().expect("seven").interrupt();
    seven.push(attach(root, &[]));
    seven[6].attached();
    // Watchers are never in the way of a kill.
    let killed = Lifemon::find().run(["kill", &leaf.pid.to_string(), "-o", "json"]);
    assert_eq!(killed.code, Some(0), "{}", killed.stderr);
    assert_eq!(killed.json()["extinct"], true, "{}", killed.stdout);
    for stream in &mut seven {
        wait_for_exit(stream, leaf);
    }
    for mut stream in seven {
        stream.interrupt();
        let finished = stream.finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let summary = finished.events.last().expect("a summary");
        assert_eq!(summary["complete"], true, "{summary}");
    }
    assert_unused(&tracker.status());
}

#[test]
fn a_stopped_watcher_loses_only_its_own_events() {
    let burst = usize::try_from(scaled(2000).max(400)).expect("few");
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "burst", burst);
    let mut slow = attach(actor.process(), &["--ring-size", "4K"]);
    let mut quick = attach(actor.process(), &[]);
    slow.attached();
    quick.attached();
    slow.signal(Signal::SIGSTOP);
    actor.step();

    let mut exits = 0;
    while exits < burst {
        let event = quick.next_event(DEADLINE).expect("more events");
        assert_ne!(event["event"], "lost", "{event}");
        exits += usize::from(event["event"] == "exit");
    }
    slow.signal(Signal::SIGCONT);
    let lost = slow.wait_for("a loss", |event| event["event"] == "lost");
    assert_eq!(lost["reason"], "ring_full", "{lost}");
    assert_eq!(
        (&lost["recovered"], &lost["complete"]),
        (&false.into(), &false.into())
    );
    assert!(
        lost["count"].as_u64().is_some_and(|count| count > 0),
        "{lost}"
    );
    slow.wait_for("its recovery", |event| {
        event["event"] == "lost" && event["recovered"] == true
    });

    for stream in [&mut slow, &mut quick] {
        stream.interrupt();
    }
    let (slow, quick) = (slow.finish(), quick.finish());
    assert_eq!((slow.code, quick.code), (Some(0), Some(0)));
    let summary = |events: &[Value]| events.last().expect("a summary").clone();
    assert_eq!(summary(&slow.events)["summary"]["alive"], 1);
    let lost = &summary(&slow.events)["summary"]["lost_events"];
    assert!(lost.as_u64().is_some_and(|count| count > 0), "{lost}");
    assert_eq!(subjects(&quick.events, "fork").len(), burst);
    assert_eq!(subjects(&quick.events, "exit").len(), burst);
    let whole = summary(&quick.events);
    assert_eq!(whole["complete"], true, "{whole}");
    assert_eq!(whole["summary"]["lost_events"], 0, "{whole}");
}

/// Watching works, and nothing is left of those that did before.
#[track_caller]
fn assert_still_works(tracker: &HostTracker, actor: &mut Actor) {
    let truth = [actor.process(), actor.child("mid"), actor.child("leaf")];
    let mut stream = attach(actor.process(), &[]);
    let tree = stream.attached();
    let members: BTreeSet<_> = processes(&tree["members"]).into_iter().collect();
    assert_eq!(members, truth.into(), "{tree}");
    assert_eq!(tree["complete"], true, "{tree}");
    actor.command("spawn-leaf");
    let child = *actor.children("leaf-child").last().expect("reported");
    wait_for_exit(&mut stream, child);
    drop(stream);
    assert_unused(&tracker.status());
}

#[track_caller]
fn assert_unused(status: &Value) {
    let left = (&status["watched_trees"], &status["memberships"]);
    assert_eq!(left, (&0.into(), &0.into()), "{status}");
}

#[test]
fn a_watcher_killed_at_any_moment_leaves_no_slot() {
    let rounds = u32::try_from(scaled(50).max(10)).expect("few");
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let lifemon = Lifemon::find();
    let pid = actor.pid().to_string();
    for round in 0..rounds {
        let watcher = lifemon.start(lifemon.command(["attach", &pid]));
        // From its first instruction until it has been watching for a while.
        thread::sleep(Duration::from_millis(100) * (round * 7 % rounds) / rounds);
        watcher.kill();
    }
    assert_still_works(&tracker, &mut actor);
}

#[test]
fn a_watcher_killed_while_it_ends_leaves_no_membership() {
    let rounds = u32::try_from(scaled(50).max(10)).expect("few");
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    for round in 0..rounds {
        let mut stream = attach(actor.process(), &[]);
        stream.attached();
        stream.interrupt();
        thread::sleep(Duration::from_millis(25) * (round * 7 % rounds) / rounds);
        stream.signal(Signal::SIGKILL);
    }
    assert_still_works(&tracker, &mut actor);
}

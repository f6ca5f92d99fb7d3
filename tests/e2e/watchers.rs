//! Many watchers on the one tracker of the host: at once, overlapping, one too many, stopped,
//! killed. Each sees all of its own tree and nothing else, whatever happens to the others.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use lifemon_tests::killing::{assert_killed, kill};
use lifemon_tests::reports::{About, Exited, Fork, Identified as _, Lost, TrackStatus, set_of};
use lifemon_tests::{
    Actor, DEADLINE, Finished, HostTracker, Lifemon, Process, Sandbox, Stream, actor, needs,
    on_every_path, scaled,
};
use nix::sys::signal::Signal;

fn attach(process: Process, options: &[&str]) -> Stream {
    Lifemon::find().attach(&process.pid, options)
}

#[track_caller]
fn wait_for_exit(stream: &mut Stream, dead: Process) {
    stream.wait_for_event::<Exited>(dead);
}

/// Returns the processes of all events of this kind, each named once.
#[track_caller]
fn subjects<K: About + 'static>(finished: &Finished) -> BTreeSet<Process> {
    let all: Vec<_> = finished
        .all::<K>()
        .map(|event| event.subject().process())
        .collect();
    let once: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(once.len(), all.len(), "{} of one process twice", K::WORD);
    once
}

/// Returns the processes that the nested actor's children with these roles were.
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
        assert_eq!(stream.attached().tree.process(), *process);
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
        assert_eq!(subjects::<Fork>(&finished), expected, "{watched:?}");
        assert_eq!(subjects::<Exited>(&finished), expected, "{watched:?}");
        assert!(finished.detached().complete);
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
    assert_eq!(tracker.status().watched_trees, 7);

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
    assert_killed(&kill(&leaf.pid, &[]));
    for stream in &mut seven {
        wait_for_exit(stream, leaf);
    }
    for mut stream in seven {
        stream.interrupt();
        let finished = stream.finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let last = finished.detached();
        assert!(last.complete, "{last:?}");
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
        assert!(event.as_kind::<Lost>().is_none(), "{event:?}");
        exits += usize::from(event.as_kind::<Exited>().is_some());
    }
    slow.signal(Signal::SIGCONT);
    let lost = slow.wait_for_line::<Lost>("a loss", |_| true);
    assert_eq!(lost.reason, "ring_full", "{lost:?}");
    assert!(!lost.recovered && !lost.complete, "{lost:?}");
    assert!(lost.count > 0, "{lost:?}");
    slow.wait_for_line::<Lost>("its recovery", |lost| lost.recovered);

    for stream in [&mut slow, &mut quick] {
        stream.interrupt();
    }
    let (slow, quick) = (slow.finish(), quick.finish());
    assert_eq!((slow.code, quick.code), (Some(0), Some(0)));
    let summary = &slow.detached().summary;
    assert_eq!(summary.alive, 1);
    assert!(summary.lost_events > 0, "{summary:?}");
    assert_eq!(subjects::<Fork>(&quick).len(), burst);
    assert_eq!(subjects::<Exited>(&quick).len(), burst);
    let whole = quick.detached();
    assert!(whole.complete, "{whole:?}");
    assert_eq!(whole.summary.lost_events, 0, "{whole:?}");
}

/// Claims that watching works, and that nothing is left of those that did before.
#[track_caller]
fn assert_still_works(tracker: &HostTracker, actor: &mut Actor) {
    let truth = [actor.process(), actor.child("mid"), actor.child("leaf")];
    let mut stream = attach(actor.process(), &[]);
    let tree = stream.attached();
    assert_eq!(set_of(&tree.members), truth.into(), "{tree:?}");
    assert!(tree.complete, "{tree:?}");
    actor.command("spawn-leaf");
    let child = *actor.children("leaf-child").last().expect("reported");
    wait_for_exit(&mut stream, child);
    drop(stream);
    assert_unused(&tracker.status());
}

#[track_caller]
fn assert_unused(status: &TrackStatus) {
    let left = (status.watched_trees, status.memberships);
    assert_eq!(left, (0, 0), "{status:?}");
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

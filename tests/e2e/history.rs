//! What the tracker of the host remembers while no lifemon process runs: dead creators, how they
//! died, whole chains of them, and never more of it than the living need.

use std::collections::BTreeSet;

use lifemon_tests::reports::{
    Attached, Exit, Exited, Extinct, Identified as _, Member, TrackStatus, entry, set_of,
};
use lifemon_tests::{Actor, HostTracker, Lifemon, Process, Sandbox, actor, on_every_path};

/// Ghosts and processes of others on this host that may come and go during a test.
const NOISE: u64 = 64;

/// Returns the tree of a process now.
fn snapshot(actor: &Actor) -> Attached {
    Lifemon::find().attach(&actor.pid(), &[]).attached()
}

/// Returns the creator of a member, which is known.
#[track_caller]
fn creator(member: &Member) -> Process {
    let creator = member.creator.as_ref();
    creator
        .unwrap_or_else(|| panic!("no creator: {member:?}"))
        .process()
}

#[test]
fn tracking_needs_no_process() {
    let tracker = HostTracker::off();
    let sandbox = Sandbox::new();
    let on = Lifemon::find().inside(&sandbox).run(["track", "on"]);
    assert_eq!((on.code, on.stderr.as_str()), (Some(0), ""));
    assert!(sandbox.pids().is_empty(), "{:?}", sandbox.pids());
    _ = tracker.status();
}

fn a_dead_creator_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));

    let tree = snapshot(&actor);
    assert_eq!(set_of(&tree.members), [actor.process(), grandchild].into());
    assert_eq!(set_of(&tree.ghosts), [middle].into());
    let ghost = entry(&tree.ghosts, middle);
    assert!(ghost.is_by(actor.process()), "{ghost:?}");
    assert_eq!(*ghost.death(), Exit::exited(0), "{ghost:?}");
    assert!(ghost.died.is_some(), "{ghost:?}");
    let orphan = entry(&tree.members, grandchild);
    assert!(orphan.is_by(middle), "{orphan:?}");
    assert!(!ghost.inferred && !orphan.inferred, "{tree:?}");
    assert!(tree.complete, "{tree:?}");
}

fn who_killed_a_ghost_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "subreaper");
    actor.step();
    let (middle, worker) = (actor.child("middle"), actor.child("worker"));
    actor.step();

    let tree = snapshot(&actor);
    assert_eq!(set_of(&tree.members), [actor.process(), worker].into());
    let exit = entry(&tree.ghosts, middle).death();
    assert_eq!(exit.signal, Some(libc::SIGKILL), "{exit:?}");
    assert_eq!(exit.signal_name.as_deref(), Some("SIGKILL"), "{exit:?}");
    assert_eq!(exit.cause, "signal", "{exit:?}");
    assert!(exit.is_sent_by(actor.process()), "{exit:?}");
}

fn a_whole_chain_of_dead_creators_is_remembered(options: &[&str]) {
    let _tracker = HostTracker::on(options);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "chain", 4);
    actor.step();
    let (first, last) = (actor.child("first"), actor.child("last"));

    let tree = snapshot(&actor);
    assert_eq!(set_of(&tree.members), [actor.process(), last].into());
    assert_eq!(tree.ghosts.len(), 3, "{tree:?}");
    let mut at = entry(&tree.members, last);
    for _ in 0..3 {
        at = entry(&tree.ghosts, creator(at));
        assert_eq!(at.death().code, Some(0), "{at:?}");
        assert_eq!(at.elided, 0, "{at:?}");
    }
    assert_eq!(at.process(), first, "{at:?}");
    assert!(at.is_by(actor.process()), "{at:?}");
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
    let start_ns = entry(&tree.members, middle).start_ns;
    actor.step();
    assert_eq!(actor.reaped(middle.pid)["code"], 4);

    let mut stream = Lifemon::find().attach(&format!("{}@{start_ns}", middle.pid), &[]);
    let tree = stream.attached();
    let roots = [tree.tree.process(), tree.root.process()];
    assert_eq!(roots, [middle, middle], "{tree:?}");
    assert!(tree.root.is_by(actor.process()), "{tree:?}");
    assert_eq!(set_of(&tree.members), workers.iter().copied().collect());
    let ghost = entry(&tree.ghosts, middle);
    assert_eq!(ghost.death().code, Some(4), "{tree:?}");

    // Of the sandbox, and children of no test: ended with it, all at once.
    drop(sandbox);
    let finished = stream.finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let dead = finished.all::<Exited>().map(|exit| exit.process.process());
    assert_eq!(
        dead.collect::<BTreeSet<_>>(),
        workers.iter().copied().collect()
    );
    assert_eq!(finished.all::<Extinct>().count(), 1);
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
    assert_eq!(set_of(&tree.members), [actor.process(), last].into());
    assert!(tree.ghosts.len() <= 16, "{} ghosts", tree.ghosts.len());
    // Nobody between the last and the actor is forgotten: a ghost, or counted below one.
    let mut known = 0;
    let mut at = entry(&tree.members, last);
    while !at.is_by(actor.process()) {
        known += 1 + u64::from(at.elided);
        at = entry(&tree.ghosts, creator(at));
    }
    known += u64::from(at.elided);
    assert_eq!(at.process(), first, "{at:?}");
    assert_eq!(known, generations - 1);
    let full = tracker.status();
    assert!(full.ghosts <= before.ghosts + NOISE, "{full:?}");
    assert!(full.forks >= before.forks + generations, "{full:?}");
    assert!(full.complete, "{full:?}");

    drop(sandbox);
    drop(actor);
    let records = |status: &TrackStatus| status.processes + status.ghosts;
    let after = tracker.status();
    assert!(
        records(&after) <= records(&before) + NOISE,
        "{before:?} {after:?}"
    );
}

//! `lifemon attach --kill-on-root-exit`: the root ends, the rest of its tree is killed, nobody else
//! is, and all of it is told as it happens.

use lifemon_tests::killing::alive;
use lifemon_tests::reports::{Extinct, Gone, Orphaned};
use lifemon_tests::{
    Actor, DEADLINE, Freezer, HostTracker, Lifemon, Sandbox, Watching, actor, needs, private_lock,
    wait_until,
};

const OPTION: &str = "--kill-on-root-exit";

#[test]
fn the_rest_is_killed_and_told() {
    let sandbox = Sandbox::new();
    let mut other = actor!(sandbox, "fork-hold", 2);
    other.step();
    let untouched = alive(&sandbox);
    let mut actor = actor!(sandbox, "fork-hold", 20);
    actor.step();
    let watching = Watching::with(&actor, &[OPTION]);
    let workers = actor.children("worker");
    // Until then nothing is killed.
    assert_eq!(alive(&sandbox).len(), untouched.len() + 21);
    let root = actor.process();
    let story = watching.end_of(actor);
    assert_eq!(alive(&sandbox), untouched);
    assert_eq!(story.death(root).code, Some(0));
    for worker in workers {
        let exit = story.death(worker);
        assert_eq!(exit.signal, Some(9), "{exit:?}");
        _ = story.the::<Gone>(worker);
    }
    assert_eq!(story.summary().alive, 0);
}

/// Ends the root of a bomb that goes on without it.
#[track_caller]
fn end_root(sandbox: &Sandbox, mut actor: Actor) {
    let pid = actor.pid();
    let mut stream = Lifemon::find().attach(&pid, &[OPTION, "--ring-size", "16M"]);
    stream.attached();
    actor.close();
    assert_eq!(actor.wait().code(), Some(0));
    let finished = stream.finish();
    let left = alive(sandbox);
    assert!(left.is_empty(), "{left:?} survived: {}", finished.stderr);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    let last = finished.detached();
    let mut reasons = last.incomplete.iter().map(|it| it.reason.as_str());
    assert!(reasons.all(|reason| reason == "no_history"), "{last:?}");
    assert_eq!(last.summary.alive, 0, "{last:?}");
    assert_eq!(finished.all::<Extinct>().count(), 1);
}

#[test]
fn bombs_end_with_their_root() {
    for on in [false, true] {
        let _tracker = on.then(|| HostTracker::on(&[]));
        let _lock = (!on).then(private_lock);
        for bomb in ["slow-comet", "respawn", "tree"] {
            let sandbox = Sandbox::new();
            let file = sandbox.directory().join("made");
            // With the tracker on nobody needs to adopt them.
            let parents = if on { "init" } else { "adopt" };
            let mut actor = actor!(sandbox, bomb, file.display(), parents);
            actor.step();
            end_root(&sandbox, actor);
        }
    }
}

#[test]
fn what_survives_is_no_success() {
    let Some(freezer) = Freezer::new() else {
        return;
    };
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    freezer.freeze(workers[0]);
    let mut stream = Lifemon::find().attach(&actor.pid(), &[OPTION]);
    stream.attached();
    actor.close();
    stream.wait_for_event::<Gone>(workers[1]);
    stream.interrupt();
    let finished = stream.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(alive(&sandbox), [workers[0].pid].into());
    freezer.thaw();
    wait_until("its death", DEADLINE, || alive(&sandbox).is_empty());
}

#[test]
fn without_the_option_nobody_is_killed() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    actor.step();
    let workers = actor.children("worker");
    let mut watching = Watching::of(&actor);
    actor.close();
    for worker in &workers {
        watching.wait_for::<Orphaned>(*worker);
    }
    watching.expect_silence();
    let _story = watching.interrupt();
    assert_eq!(
        alive(&sandbox),
        workers.iter().map(|worker| worker.pid).collect()
    );
}

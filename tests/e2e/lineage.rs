//! Who created whom, who is orphaned by which death, and when nobody is left: the tree as a whole
//! against the real kernel. One process's own life is in `lifecycle.rs`.

use std::collections::BTreeMap;

use lifemon_tests::reports::{
    Attached, Exited, Extinct, Fork, Gone, Identified as _, Orphaned, Who, processes,
};
use lifemon_tests::{DEADLINE, Pidfd, Process, Sandbox, Watching, actor, proc, wait_until};

/// Claims what an `orphaned` event must say now that the new parent shows in `/proc`.
#[track_caller]
fn assert_orphaned(event: &Orphaned, stranded: bool, creator: Process) {
    assert_eq!(event.stranded, stranded, "{event:?}");
    assert!(event.is_by(creator), "{event:?}");
    let parent = proc::ppid(event.process.pid).expect("it lives");
    let found = event.parent.as_ref().map(|found| found.pid);
    assert_eq!(found, Some(parent), "{event:?}");
    assert_ne!(parent, creator.pid, "{event:?}");
}

/// Returns the processes of a list, sorted.
fn sorted(list: &[Who]) -> Vec<Process> {
    let mut list = processes(list);
    list.sort_unstable();
    list
}

#[test]
fn with_clone_parent_the_creator_is_who_called_clone() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "clone-parent");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let (creator, worker) = (actor.child("creator"), actor.child("worker"));
    assert_eq!(proc::ppid(worker.pid), Some(root.pid));
    for child in [worker, creator] {
        actor.command(&format!("kill {}", child.pid));
    }
    actor.close();
    let story = watching.until_extinct();
    story.assert_exactly(&[
        (root, "exit gone"),
        (creator, "fork signal exit gone"),
        (worker, "fork signal exit gone"),
    ]);
    assert!(story.about(creator).all(|event| event.is_by(root)));
    assert!(story.about(worker).all(|event| event.is_by(creator)));
}

#[test]
fn a_double_forked_grandchild_stays_a_member_and_is_told_as_reparented() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));
    let orphaned = watching.wait_for::<Orphaned>(grandchild);
    assert_orphaned(&orphaned, false, middle);
    Pidfd::of(grandchild).kill();
    watching.wait_for::<Gone>(grandchild);
    actor.close();
    let story = watching.until_extinct();

    story.assert_exactly(&[
        (root, "exit gone"),
        (middle, "fork exit gone"),
        (grandchild, "fork orphaned signal exit gone"),
    ]);
    assert!(story.the::<Fork>(grandchild).is_by(middle));
    let exit = story.the::<Exited>(middle);
    assert_eq!(exit.death().code, Some(0));
    assert_eq!(processes(&exit.orphans), [grandchild]);
    assert_eq!(exit.orphans[0].name.as_deref(), Some("actor"));
    assert_eq!(orphaned.seq, story.the::<Gone>(middle).seq + 1);
}

#[test]
fn an_orphan_is_told_although_a_subreaper_takes_it() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "subreaper");
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let (middle, worker) = (actor.child("middle"), actor.child("worker"));
    actor.step();
    let orphaned = watching.wait_for::<Orphaned>(worker);
    assert_orphaned(&orphaned, false, middle);
    let parent = orphaned.parent.as_ref().map(|parent| parent.pid);
    assert_eq!(parent, Some(root.pid));
    actor.command(&format!("kill {}", worker.pid));
    actor.close();
    let story = watching.until_extinct();

    story.assert_exactly(&[
        (root, "exit gone"),
        (middle, "fork signal exit gone"),
        (worker, "fork orphaned signal exit gone"),
    ]);
    let exit = story.the::<Exited>(middle);
    assert_eq!(processes(&exit.orphans), [worker]);
    assert!(exit.death().is_sent_by(root));
    assert!(orphaned.seq > story.the::<Gone>(middle).seq);
}

#[test]
fn a_death_lists_every_child_that_it_orphans_and_so_does_the_summary() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "three-children", 4);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let (middle, mut workers) = (actor.child("middle"), actor.children("worker"));
    actor.step();
    for worker in &workers {
        assert_orphaned(&watching.wait_for::<Orphaned>(*worker), false, middle);
    }
    let story = watching.interrupt();

    workers.sort_unstable();
    let mut expected = vec![(middle, "fork exit gone")];
    expected.extend(workers.iter().map(|worker| (*worker, "fork orphaned")));
    story.assert_exactly(&expected);
    let exit = story.the::<Exited>(middle);
    assert_eq!(exit.death().code, Some(4));
    assert_eq!(sorted(&exit.orphans), workers);
    let summary = story.summary();
    assert_eq!(sorted(&summary.orphans), workers);
    assert_eq!((summary.seen, summary.alive), (5, 4));
    assert_eq!(summary.exits(), [("exited", 1)]);
    assert!(proc::is_running(root.pid));
}

#[test]
fn the_children_of_a_dead_root_are_stranded_and_their_death_is_extinction() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 2);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let mut workers = actor.children("worker");
    workers.sort_unstable();
    actor.send("exit 3");
    assert_eq!(actor.wait().code(), Some(3));
    for worker in &workers {
        assert_orphaned(&watching.wait_for::<Orphaned>(*worker), true, root);
    }
    watching.expect_silence();
    for worker in &workers {
        Pidfd::of(*worker).kill();
    }
    let story = watching.until_extinct();

    story.assert_exactly(&[
        (root, "exit gone"),
        (workers[0], "fork orphaned signal exit gone"),
        (workers[1], "fork orphaned signal exit gone"),
    ]);
    let exit = story.the::<Exited>(root);
    assert_eq!(exit.death().code, Some(3));
    assert_eq!(sorted(&exit.orphans), workers);
    let extinct = story.all::<Extinct>().next().expect("checked");
    for exit in story.all::<Exited>() {
        assert!(exit.seq < extinct.seq, "{exit:?} {extinct:?}");
        assert!(
            exit.time.as_ref() <= Some(&extinct.time),
            "{exit:?} {extinct:?}"
        );
    }
    assert_eq!(story.summary().exits(), [("exited", 1), ("signal", 2)]);
}

#[test]
fn of_a_chain_the_last_stays_a_member_and_every_creator_is_told() {
    const GENERATIONS: usize = 50;
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "chain", GENERATIONS);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    let (first, last) = (actor.child("first"), actor.child("last"));
    watching.wait_for::<Orphaned>(last);
    Pidfd::of(last).kill();
    actor.close();
    let story = watching.until_extinct();

    assert_eq!(story.count::<Fork>(), GENERATIONS);
    assert_eq!(story.death(last).signal, Some(libc::SIGKILL));
    let forks: Vec<_> = story.all::<Fork>().collect();
    assert!(forks[0].process.process() == first && forks[0].is_by(root));
    for pair in forks.windows(2) {
        let creator = pair[1].creator.as_ref().expect("a creator");
        assert_eq!(creator.id(), pair[0].process.id(), "{:?}", pair[1]);
    }
    assert_eq!(forks[GENERATIONS - 1].process.process(), last);
}

#[test]
fn each_generation_is_the_creator_of_its_own_children() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    let root = actor.process();
    // Once attached before anything is made, once when mid and leaf are members already.
    let mut early = Watching::of(&actor);
    actor.step();
    let (mid, leaf) = (actor.child("mid"), actor.child("leaf"));
    let mut late = Watching::of(&actor);
    assert_members(
        late.attached(),
        &[(root, None), (mid, Some(root)), (leaf, Some(mid))],
    );
    let mut expected = Vec::new();
    for (command, creator) in [("mid", mid), ("leaf", leaf), ("leaf", leaf)] {
        actor.command(&format!("spawn-{command}"));
        let child = *actor
            .children(&format!("{command}-child"))
            .last()
            .expect("reported");
        early.wait_for::<Gone>(child);
        let fork = late.wait_for::<Fork>(child);
        assert!(fork.is_by(creator), "{fork:?}");
        let name = fork
            .creator
            .as_ref()
            .and_then(|creator| creator.name.as_deref());
        assert_eq!(name, Some("actor"));
        late.wait_for::<Gone>(child);
        expected.push((child, "fork exit gone"));
    }
    late.interrupt().assert_exactly(&expected);
    expected.extend([(mid, "fork"), (leaf, "fork")]);
    let story = early.interrupt();
    story.assert_exactly(&expected);
    assert!(story.the::<Fork>(leaf).is_by(mid));
}

/// Claims that the members of a snapshot are exactly these, with these creators.
#[track_caller]
fn assert_members(attached: &Attached, expected: &[(Process, Option<Process>)]) {
    let expected: BTreeMap<_, _> = expected.iter().copied().collect();
    let found = attached.members.iter().map(|member| {
        assert_eq!(member.name.as_deref(), Some("actor"), "{member:?}");
        // Of the root's own creator, the test, the actor knows nothing.
        let is_root = member.pid == attached.tree.pid;
        let creator = member.creator.filter(|_| !is_root);
        (member.process(), creator.map(|creator| creator.process()))
    });
    let found: BTreeMap<_, _> = found.collect();
    assert_eq!(found.len(), attached.members.len(), "nobody twice");
    assert_eq!(found, expected);
    assert_eq!(attached.incomplete[0].reason, "no_history");
    assert_eq!(attached.ghosts, []);
}

#[test]
fn the_snapshot_of_a_wide_tree_is_the_actors_own_truth() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 500);
    let root = actor.process();
    actor.step();
    let workers = actor.children("worker");
    assert_eq!(workers.len(), 500);
    let mut watching = Watching::of(&actor);
    let mut expected = vec![(root, None)];
    expected.extend(workers.iter().map(|worker| (*worker, Some(root))));
    assert_members(watching.attached(), &expected);

    // And it is the same 500 that die when they are told to.
    for worker in &workers {
        Pidfd::of(*worker).kill();
    }
    for worker in &workers {
        watching.wait_for::<Gone>(*worker);
    }
    actor.close();
    let story = watching.until_extinct();
    let mut expected = vec![(root, "exit gone")];
    expected.extend(workers.iter().map(|worker| (*worker, "signal exit gone")));
    story.assert_exactly(&expected);
    assert_eq!(story.summary().exits(), [("exited", 1), ("signal", 500)]);
}

#[test]
fn what_lives_beside_the_tree_is_not_told() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-hold", 1);
    let mut beside = actor!(sandbox, "burst", 200);
    let root = actor.process();
    let watching = Watching::of(&actor);
    beside.step();
    actor.step();
    let worker = actor.child("worker");
    actor.command(&format!("kill {}", worker.pid));
    actor.close();
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork signal exit gone")]);
}

#[test]
fn a_stranger_with_many_ancestors_leaves_no_doubt() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let mut stranger = actor!(sandbox, "deep", 24);
    stranger.step();
    stranger.child("last");
    let root = actor.process();
    let watching = Watching::of(&actor);
    assert_members(watching.attached(), &[(root, None)]);
}

#[test]
fn a_root_that_nobody_reaps_is_gone_all_the_same() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "pause");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.close();
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exit gone")]);
    wait_until("a zombie", DEADLINE, || {
        proc::stat(root.pid).is_some_and(|stat| stat.state == 'Z')
    });
    assert_eq!(actor.wait().code(), Some(0));
}

//! `lifemon tree`: the lineage at one moment, the dead with living descendants in their places.

use lifemon_tests::left_behind::{ask, tree};
use lifemon_tests::reports::{Exit, Identified as _, entry, find, processes};
use lifemon_tests::{Lifemon, Sandbox, actor, needs, proc, scaled};

#[test]
fn a_ghost_stands_between_its_creator_and_what_it_created() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let (middle, grandchild) = (actor.child("middle"), actor.child("grandchild"));
    let tree = tree(&[&actor.pid().to_string()]);
    assert!(tree.complete, "{tree:?}");
    let root = tree.tree.expect("the root that was named");
    assert_eq!(root.process(), actor.process());
    // Each creator before what it created.
    let expected = [actor.process(), middle, grandchild];
    assert_eq!(processes(&tree.processes), expected, "{tree:?}");
    let ghost = entry(&tree.processes, middle);
    assert!(!ghost.alive, "{ghost:?}");
    assert_eq!(ghost.exit, Some(Exit::exited(0)), "{ghost:?}");
    assert!(ghost.died.is_some() && ghost.command.is_none());
    let orphan = entry(&tree.processes, grandchild);
    assert!(orphan.alive, "{orphan:?}");
    assert_eq!(orphan.reparented, Some(true), "{orphan:?}");
    let parent = orphan.parent.as_ref().map(|parent| parent.pid);
    assert_eq!(parent, proc::ppid(grandchild.pid));
    let root = entry(&tree.processes, actor.process());
    let command = root.command.as_ref().expect("it lives");
    assert_eq!(command[1], "double-fork", "{root:?}");

    let text = Lifemon::find().run(["tree", &actor.pid().to_string()]);
    assert_eq!(text.code, Some(0), "{text:?}");
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert!(
        lines[1].starts_with(&format!("  \u{2020} {}", middle.pid)),
        "{text:?}"
    );
    assert!(
        lines[2].starts_with(&format!("    {}", grandchild.pid)),
        "{text:?}"
    );
    assert!(lines[2].contains("parent is"), "{text:?}");
}

#[test]
fn a_ghost_can_be_the_root() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let middle = actor.child("middle");
    let tree = tree(&[&middle.pid.to_string()]);
    assert_eq!(tree.processes.len(), 2, "{tree:?}");
    let missing = ask("tree", &["2147483647"]);
    assert_eq!(missing.code, Some(4), "{missing:?}");
}

#[test]
fn equal_siblings_fold_in_text_and_only_there() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let count = scaled(200).max(3);
    let mut actor = actor!(sandbox, "fork-hold", count);
    actor.step();
    let pid = actor.pid().to_string();
    let folded = Lifemon::find().run(["tree", &pid]);
    assert_eq!(folded.stdout.lines().count(), 2, "{folded:?}");
    let more = format!("(and {} more like it", count - 1);
    assert!(folded.stdout.contains(&more), "{folded:?}");
    let full = Lifemon::find().run(["tree", &pid, "--full"]);
    assert_eq!(full.stdout.lines().count() as u64, count + 1, "{full:?}");
    let json = tree(&[&pid]);
    assert_eq!(json.processes.len() as u64, count + 1);
}

#[test]
fn the_whole_host() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let tree = tree(&[]);
    assert_eq!(tree.tree, None);
    for process in [actor.process(), actor.child("mid"), actor.child("leaf")] {
        let line = entry(&tree.processes, process);
        assert!(line.alive, "{line:?}");
    }
    let init = &tree.processes[0];
    assert_eq!((init.pid, init.alive), (1, true));
}

#[test]
fn without_the_tracker_the_living_are_there_and_the_dead_are_not() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let tree = tree(&[&actor.pid().to_string()]);
    assert!(!tree.complete, "{tree:?}");
    assert_eq!(tree.incomplete[0].reason, "no_history", "{tree:?}");
    assert!(find(&tree.processes, actor.process()).is_some(), "{tree:?}");
    assert!(find(&tree.processes, actor.child("middle")).is_none());
}

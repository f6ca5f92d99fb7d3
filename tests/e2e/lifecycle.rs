//! One process at a time against the real kernel: its birth, its programs, its threads and its one
//! death by exit. Deaths by signal are in `deaths.rs`, who belongs to whom in `lineage.rs`.

use std::thread;
use std::time::Duration;

use lifemon_tests::reports::{Exec, Exit, Exited, Fork, Gone, Identified as _};
use lifemon_tests::{Lifemon, Sandbox, Watching, actor, needs, on_every_path};
use serde_json::Value;

on_every_path!(
    forked_children_are_told_with_their_creator_and_their_code,
    an_exec_by_a_thread_is_one_exec_and_no_death,
    a_process_whose_leader_exits_first_dies_once_and_at_its_true_end,
    an_exit_by_a_thread_is_the_death_of_the_process,
);

fn forked_children_are_told_with_their_creator_and_their_code(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "fork-wait", 3, 7);
    let root = actor.process();
    let watching = Watching::with(&actor, options);
    actor.step();
    let workers = actor.children("worker");
    let story = watching.end_of(actor);

    let [first, second, third] = workers[..] else {
        panic!("three workers: {workers:?}")
    };
    story.assert_exactly(&[
        (root, "exit gone"),
        (first, "fork exit gone"),
        (second, "fork exit gone"),
        (third, "fork exit gone"),
    ]);
    for worker in workers {
        for event in story.about(worker) {
            assert!(event.is_by(root), "{event:?}");
            let creator = event.creator().expect("a creator");
            assert_eq!(creator.name.as_deref(), Some("actor"), "{event:?}");
            let subject = event.subject().expect("it is about the worker");
            assert_eq!(subject.name.as_deref(), Some("actor"), "{event:?}");
            assert_eq!(subject.uid, Some(0), "{event:?}");
        }
        let exit = story.the::<Exited>(worker);
        assert_eq!(*exit.death(), Exit::exited(7));
        assert_eq!(exit.orphans, []);
        assert!(exit.age_ms < Some(10_000), "{exit:?}");
    }
    assert_eq!(*story.death(root), Exit::exited(0));
    assert_eq!(story.summary().exits(), [("exited", 4)]);
}

#[test]
fn deaths_are_told_in_the_order_of_their_times() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    let mut watching = Watching::of(&actor);
    actor.step();
    // Each is reaped before the next is made, so there is one true order.
    for _ in 0..20 {
        actor.command("spawn-mid");
        actor.command("spawn-leaf");
    }
    let last = *actor.children("leaf-child").last().expect("reported");
    watching.wait_for::<Gone>(last);
    let story = watching.interrupt();
    let is_child = |line: &&Value| line["role"].as_str().is_some_and(|r| r.ends_with("-child"));
    let told: Vec<_> = story.all::<Exited>().collect();
    let made: Vec<_> = actor.seen().iter().filter(is_child).collect();
    assert_eq!(told.len(), 40);
    for (told, made) in told.iter().zip(made) {
        assert_eq!(made["child"], told.process.pid, "{told:?} {made}");
    }
    assert!(told.is_sorted_by_key(|exit| &exit.time));
}

#[test]
fn a_vforked_child_has_another_name_after_its_exec() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "vfork-exec");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    let child = actor.child("vforked");
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (child, "fork exec exit gone")]);
    let subjects = story.about(child).filter_map(|event| event.subject());
    let names: Vec<_> = subjects.filter_map(|it| it.name.as_deref()).collect();
    assert_eq!(names, ["actor", "true", "true", "true"]);
    assert!(story.the::<Exec>(child).is_by(root));
    assert_eq!(*story.death(child), Exit::exited(0));
}

fn an_exec_by_a_thread_is_one_exec_and_no_death(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exec-from-thread");
    let root = actor.process();
    let mut watching = Watching::with(&actor, options);
    actor.step();
    watching.wait_for::<Exec>(root);
    watching.expect_silence();
    actor.send("exit 5");
    assert_eq!(actor.wait().code(), Some(5));
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exec exit gone")]);
    // The same to the nanosecond, before and after.
    let tree = story.attached().tree;
    assert_eq!(story.the::<Exec>(root).process.id(), tree);
    assert_eq!(story.the::<Exited>(root).process.id(), tree);
    assert_eq!(*story.death(root), Exit::exited(5));
}

fn a_process_whose_leader_exits_first_dies_once_and_at_its_true_end(options: &[&str]) {
    for how in ["group", "thread"] {
        let sandbox = Sandbox::new();
        let mut actor = actor!(sandbox, "leader-exits-first", 6, how);
        let root = actor.process();
        let mut watching = Watching::with(&actor, options);
        actor.step();
        actor.wait_for("leader exited", |line| line["leader_exited"] == true);
        watching.expect_silence();
        actor.send("go");
        // 6, or 77 before Linux 5.17 where the last thread exits alone: `actors.rs` knows.
        let code = actor.wait().code().expect("exited");
        let story = watching.until_extinct();
        story.assert_exactly(&[(root, "exit gone")]);
        assert_eq!(*story.death(root), Exit::exited(code), "{how}");
    }
}

fn an_exit_by_a_thread_is_the_death_of_the_process(options: &[&str]) {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "exit-group-from-thread", 8);
    let root = actor.process();
    let watching = Watching::with(&actor, options);
    actor.send("go");
    assert_eq!(actor.wait().code(), Some(8));
    let story = watching.until_extinct();
    story.assert_exactly(&[(root, "exit gone")]);
    assert_eq!(*story.death(root), Exit::exited(8));
}

#[test]
fn threads_that_come_and_go_are_no_events() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "threads", 200);
    let root = actor.process();
    let mut watching = Watching::of(&actor);
    actor.step();
    watching.expect_silence();
    watching
        .end_of(actor)
        .assert_exactly(&[(root, "exit gone")]);
}

#[test]
fn a_ring_thread_that_exits_last_does_not_change_the_code() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "sqpoll");
    let root = actor.process();
    let watching = Watching::of(&actor);
    actor.step();
    if let Some(reason) = actor.skipped() {
        return println!("skipped: {reason}");
    }
    let worker = actor.child("worker");
    actor.step();
    let story = watching.end_of(actor);
    story.assert_exactly(&[(root, "exit gone"), (worker, "fork exit gone")]);
    assert_eq!(*story.death(worker), Exit::exited(9));
    let name = &story.the::<Exited>(worker).process.name;
    assert_eq!(name.as_deref(), Some("actor"));
}

#[test]
fn text_is_for_people_and_plain_where_there_is_no_terminal() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "nested");
    actor.step();
    let (mid, leaf) = (actor.child("mid"), actor.child("leaf"));
    needs!(private_tracker);
    let output = thread::scope(|scope| {
        let words = ["attach", &actor.pid().to_string(), "--for", "1s"].map(str::to_owned);
        let lifemon = scope.spawn(|| Lifemon::find().run(words));
        while !lifemon.is_finished() {
            actor.command("spawn-leaf");
            thread::sleep(Duration::from_millis(10));
        }
        lifemon.join().expect("it ran")
    });

    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let text = output.stdout;
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    let root = actor.pid();
    assert!(
        text.starts_with(&format!("watching the tree of {root} actor: ")),
        "{text}"
    );
    for line in [
        format!("\n~ {root} actor\n"),
        format!("\n  ~ {} actor\n", mid.pid),
        format!("\n    ~ {} actor\n", leaf.pid),
    ] {
        assert!(text.contains(&line), "no line {line:?} in {text}");
    }
    let children = actor.children("leaf-child");
    let whole = children.iter().find(|child| {
        let of = |kind, rest: String| {
            let said = format!(" {kind:<8} {} actor{rest}", child.pid);
            text.lines().any(|line| line.contains(&said))
        };
        of("fork", format!("  by {} actor", leaf.pid))
            && of("exit", "  code 0, aged ".into())
            && of("gone", "  ".into())
    });
    assert!(
        whole.is_some(),
        "no child of the leaf with its whole life in {text}"
    );
    let mut last = text.lines().rev();
    // What was before it was loaded this tracker does not know.
    let doubt = last.next().expect("a doubt");
    assert!(
        doubt.starts_with("not complete: what died before"),
        "{doubt}"
    );
    let summary = last.next().expect("a summary");
    assert!(summary.contains(" alive; exits: "), "{summary}");
}

#[test]
fn what_has_happened_before_ctrl_c_is_reported() {
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "three-children", 0);
    let watching = Watching::of(&actor);
    actor.step();
    // Forks wake nobody: they wait in the ring for the next tick.
    let story = watching.interrupt();
    let forks = story.all::<Fork>().map(|fork| fork.process.process());
    let created: Vec<_> = forks.collect();
    let workers = actor.children("worker");
    assert_eq!(created, [&[actor.child("middle")], &workers[..]].concat());
}

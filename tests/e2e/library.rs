//! The face of the library: each function at the root of the crate, on one small tree.

use std::future::Future;

use lifemon::{
    Event, KillError, KillOptions, KillRefusal, ProcessId, Watch, What, gpu_holders, kill_tree,
    kill_tree_blocking, orphans, tree,
};
use lifemon_tests::killing::assert_nobody;
use lifemon_tests::{DEADLINE, Sandbox, actor, needs, proc};

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let limited = tokio::time::timeout(DEADLINE, future).await;
        limited.expect("an end in time")
    })
}

fn pid(process: lifemon_tests::Process) -> u32 {
    process.pid.cast_unsigned()
}

#[test]
fn the_tree_and_its_orphan_are_reported_and_the_tree_is_killed() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let (middle, grandchild) = (pid(actor.child("middle")), pid(actor.child("grandchild")));
    let root = pid(actor.process());

    let report = tree(Some(root.into())).expect("a tree");
    let ids = report.entries.iter().map(|entry| entry.process.id);
    let ids: Vec<ProcessId> = ids.collect();
    let pids: Vec<u32> = ids.iter().map(|id| id.pid).collect();
    assert_eq!(pids, [root, middle, grandchild], "{report:?}");
    assert!(report.entries[1].died.is_some(), "{report:?}");
    let text = serde_json::to_string(&report).expect("JSON");
    let back: lifemon::TreeReport = serde_json::from_str(&text).expect("a report");
    assert_eq!(back, report);

    let left = orphans(Some(root.into())).expect("orphans");
    assert_eq!(left.orphans.len(), 1, "{left:?}");
    assert_eq!(left.orphans[0].process.id, ids[2], "{left:?}");
    let text = serde_json::to_string(&left).expect("JSON");
    let back: lifemon::OrphanReport = serde_json::from_str(&text).expect("a report");
    assert_eq!(back, left);

    let killed = kill_tree_blocking(ids[0], &KillOptions::new()).expect("a report");
    assert!(
        killed.is_done() && killed.outcome.killed.len() == 2,
        "{killed:?}"
    );
    assert_nobody(&sandbox);
}

#[test]
fn a_watch_streams_the_deaths_of_a_tree_until_nothing_is_left() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let root = pid(actor.process());
    run(async {
        let mut watch = Watch::start(root).expect("a watch");
        assert_eq!(watch.begin().root.id.pid, root);
        let killing = tokio::spawn(async move { kill_tree(root, &KillOptions::new()).await });
        let (mut died, mut is_extinct) = (Vec::new(), false);
        while let Some(event) = watch.next().await {
            match event.expect("an event") {
                Event::Happening(happening) => {
                    if let What::Exit { .. } = happening.what {
                        died.push(happening.process.id.pid);
                    }
                }
                Event::Extinct => is_extinct = true,
                _ => {}
            }
        }
        assert!(died.contains(&root) && is_extinct, "{died:?}");
        assert!(watch.next().await.is_none());
        let killed = killing.await.expect("an end").expect("a report");
        assert!(killed.is_done(), "{killed:?}");
    });
    assert_nobody(&sandbox);
}

#[test]
fn a_process_that_does_not_exist_is_an_error_and_holders_are_listed_without_a_driver() {
    needs!(private_tracker);
    let nobody = ProcessId::new(1, 1);
    for error in [
        tree(Some(nobody.into())).expect_err("nobody"),
        orphans(Some(nobody.into())).expect_err("nobody"),
        run(async { Watch::start(nobody).expect_err("nobody") }),
    ] {
        assert_eq!(error.to_string(), "no such process: 1@1");
    }
    let report = run(gpu_holders(&lifemon::GpuQuery::new())).expect("a report");
    assert!(report.gpus.is_empty(), "{report:?}");
}

#[test]
fn a_pid_that_means_two_processes_is_refused_and_an_identity_is_not() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "heir", "orphan");
    actor.step();
    let orphan = actor.child("orphan");
    actor.step();
    let heir = actor.child("heir");
    assert_eq!(heir.pid, actor.child("first").pid);
    let error = kill_tree_blocking(pid(heir), &KillOptions::new()).expect_err("two");
    let KillError::Refused(KillRefusal::Ambiguous { now, ghost }) = error else {
        panic!("{error}");
    };
    assert_eq!((now.pid, ghost.pid), (pid(heir), pid(heir)));
    assert!(proc::is_running(heir.pid) && proc::is_running(orphan.pid));
    let killed = kill_tree_blocking(ghost, &KillOptions::new()).expect("a report");
    assert!(killed.is_done(), "{killed:?}");
    assert!(proc::is_running(heir.pid) && !proc::is_running(orphan.pid));
}

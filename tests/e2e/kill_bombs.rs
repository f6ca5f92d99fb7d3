//! `lifemon kill` on trees that fork while they are killed: nothing of them is left the moment it
//! has ended, by an oracle that does not ask lifemon.

use std::time::Duration;

use lifemon_tests::killing::{alive, assert_killed, kill, words};
use lifemon_tests::reports::{KillReport, set_of};
use lifemon_tests::{DEADLINE, Sandbox, actor, needs, poll, scaled, stretched, wait_until};

/// Trials of each bomb with the tracker of the host.
const TRIALS: u64 = 20;
/// With a tracker that lifemon loads for itself.
const TRIALS_OFF: u64 = 5;

/// For what is dying already.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Kills a burning bomb; what the report says besides.
#[track_caller]
fn kill_burning(name: &str, parents: &str, options: &[&str]) -> KillReport {
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("made");
    let mut actor = actor!(sandbox, name, file.display(), parents);
    actor.step();
    if name != "tree" {
        let made = words(&file)[0];
        wait_until("it still burns", DEADLINE, || words(&file)[0] > made);
    }
    let output = kill(&actor.pid(), options);
    let made = words(&file)[0];
    // Who was past its last instruction when the tree was learnt is no member, and takes a moment
    // to be over. A bomb that lives goes on forking: it is never seen to be over.
    let is_over = poll(stretched(A_MOMENT), || {
        alive(&sandbox).is_empty().then_some(())
    });
    let left = alive(&sandbox);
    assert!(is_over.is_some(), "{left:?} survived {name}: {output:?}");
    assert_eq!(words(&file)[0], made, "somebody went on");
    let report = assert_killed(&output);
    assert!(set_of(&report.killed).contains(&actor.process()));
    report
}

/// With the host's tracker, which knows who made whom when nobody between is left.
#[track_caller]
fn assert_dies(name: &str) {
    needs!(host_tracker);
    for _ in 0..scaled(TRIALS) {
        kill_burning(name, "init", &[]);
    }
}

/// With a tracker that comes too late for that: the actor is the parent of what the dead leave.
#[track_caller]
fn assert_dies_without_history(name: &str) {
    needs!(private_tracker);
    for _ in 0..scaled(TRIALS_OFF) {
        kill_burning(name, "adopt", &[]);
    }
}

macro_rules! bombs {
    ($($function:ident: $name:literal),+ $(,)?) => {
        mod tracker_on {
            $(#[test] fn $function() { super::assert_dies($name); })+
        }
        mod tracker_off {
            $(#[test] fn $function() { super::assert_dies_without_history($name); })+
        }
    };
}

bombs!(
    comet: "comet",
    slow_comet: "slow-comet",
    tree: "tree",
    respawn: "respawn",
    vfork_burst: "vfork-burst",
    forking_threads: "forking-threads",
);

#[test]
fn all_of_the_tree_is_in_the_report() {
    needs!(host_tracker);
    let report = kill_burning("tree", "init", &[]);
    assert_eq!(report.killed.len(), 501, "{report:?}");
}

#[test]
fn bombs_that_are_asked_first_die_as_well() {
    needs!(host_tracker);
    for name in ["tree", "comet", "respawn", "forking-threads"] {
        kill_burning(name, "init", &["--signal", "TERM", "--grace", "200ms"]);
    }
}

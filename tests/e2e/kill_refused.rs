//! Whom `lifemon kill` does not kill, and what it says then: the exit code, the reason, the remedy.

use std::process::Command;

use lifemon_tests::killing::{alive, assert_killed, kill};
use lifemon_tests::{Lifemon, Output, Sandbox, actor, needs, with_either_tracker};

/// Claims this exit code, one line with these words, and nothing on stdout.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(code), ""),
        "{output:?}"
    );
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?}: {output:?}");
    }
}

fn the_init_of_the_host() {
    // A dry run is refused as well: so nothing can go wrong here.
    assert_refused(&kill(&1, &["--dry-run"]), 1, &["process 1", "smaller tree"]);
    assert_refused(&kill(&1, &["--dry-run", "--force"]), 1, &["process 1"]);
}

fn a_kernel_thread() {
    assert_refused(&kill(&2, &["--dry-run"]), 4, &["kernel thread"]);
}

fn what_is_no_longer_that_process() {
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let words = ["another process now", &actor.pid().to_string()];
    assert_refused(&kill(&format!("{}@1", actor.pid()), &[]), 4, &words);
    assert_eq!(alive(&sandbox), [actor.pid()].into());
}

/// lifemon runs below the shell that it is to kill.
fn an_ancestor_without_force() {
    let sandbox = Sandbox::new();
    let mut shell = Command::new("sh");
    let script = "\"$0\" kill $$; echo \"code $?\"";
    shell.args(["-c", script]).arg(Lifemon::find().program());
    sandbox.enter(&mut shell);
    let output = shell.output().expect("a shell");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("ancestor") && told.contains("--force"),
        "{output:?}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "code 1\n");
}

with_either_tracker!(
    the_init_of_the_host,
    a_kernel_thread,
    what_is_no_longer_that_process,
    an_ancestor_without_force,
);

/// The descendants of a dead root are known to a tracker that was on, and to nobody else.
#[test]
fn a_dead_root_without_the_tracker() {
    needs!(private_tracker);
    let sandbox = Sandbox::new();
    let mut actor = actor!(sandbox, "double-fork");
    actor.step();
    let before = alive(&sandbox);
    let output = kill(&actor.child("middle").pid, &[]);
    assert_refused(&output, 4, &["no process", "lifemon track on"]);
    assert_eq!(alive(&sandbox), before);
}

/// Trees that contain one another: each takes a layer, and the last layer is for kills.
#[test]
fn watchers_of_one_process_refuse_no_kill() {
    needs!(host_tracker);
    let sandbox = Sandbox::new();
    let actor = actor!(sandbox, "pause");
    let lifemon = Lifemon::find();
    let mut watchers: Vec<_> = (0..7).map(|_| lifemon.attach(&actor.pid(), &[])).collect();
    for watcher in &mut watchers {
        _ = watcher.attached();
    }
    let words = ["attach", &actor.pid().to_string()];
    assert_refused(&lifemon.run(words), 1, &["overlaps", "end one of them"]);
    assert_killed(&kill(&actor.pid(), &[]));
    assert_eq!(alive(&sandbox), [].into());
    watchers.clear();
}

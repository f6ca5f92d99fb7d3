//! A `lifemon kill` that does not come to its end: interrupted while it waits, or killed itself at
//! any moment. Nothing of it stays, and a second one does what the first did not.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lifemon_tests::killing::{alive, assert_killed, assert_nobody, checked, kill, words};
use lifemon_tests::reports::KillReport;
use lifemon_tests::{
    Actor, DEADLINE, HostTracker, Lifemon, Running, Sandbox, Toll, actor, closer, needs, proc,
    scaled, wait_until, with_either_tracker,
};
use nix::sys::signal::Signal;

/// Kills that are killed.
const TRIALS: u64 = 50;
/// With a tracker that lifemon loads for itself, which takes longer.
const TRIALS_OFF: u64 = 20;
const MEMBERS: u32 = 60;
/// Spreads the moments of the trials evenly, in no order.
const GOLDEN: f64 = 0.618_034;

fn ctrl_c_while_it_waits() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let sandbox = Sandbox::new();
        let file = sandbox.directory().join("beats");
        let mut actor = actor!(sandbox, "pulse", 8, file.display());
        actor.step();
        let before = alive(&sandbox);
        let target = actor.pid().to_string();
        let lifemon = Lifemon::find();
        // The root, which dies of SIGTERM, is spared by another signal that nobody minds.
        let words_of_kill = ["kill", &target, "--signal", "WINCH", "--grace", "50s"];
        let mut running = lifemon.start(lifemon.command(words_of_kill));
        wait_for_grace(&running);
        running.signal(signal);
        let output = running.finish(Duration::from_secs(10));
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains("interrupted"), "{output:?}");
        assert_eq!(output.stdout, "", "{output:?}");
        assert_eq!(alive(&sandbox), before, "somebody was killed");
        let beats = || -> Vec<_> { words(&file).into_iter().skip(1).step_by(3).collect() };
        let then = beats();
        wait_until("two more beats of each", DEADLINE, || {
            beats().iter().zip(&then).all(|(now, then)| *now > then + 1)
        });
        let output = kill(&target, &[]);
        assert_nobody(&sandbox);
        assert_killed(&output);
    }
}

/// Waits until it has sent its first signals: it sleeps then, until the grace is over.
#[track_caller]
fn wait_for_grace(running: &Running) {
    let mut since = Instant::now();
    wait_until("its grace", DEADLINE, || {
        let stat = proc::stat(running.pid()).expect("a lifemon that runs");
        if stat.state != 'S' {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(300)
    });
}

with_either_tracker!(ctrl_c_while_it_waits);

#[test]
fn a_tracker_that_is_switched_off_meanwhile_stops_no_kill() {
    let tracker = HostTracker::on(&[]);
    let sandbox = Sandbox::new();
    let actor = tree(&sandbox);
    let target = actor.pid().to_string();
    let lifemon = Lifemon::find();
    let words = [
        "kill", &target, "-o", "json", "--signal", "WINCH", "--grace", "6s",
    ];
    let running = lifemon.start(lifemon.command(words));
    wait_for_grace(&running);
    tracker.switch_off();
    // It still sleeps, and does not turn in a circle at the priority that it has.
    wait_for_grace(&running);
    let output = running.finish(DEADLINE);
    let report: KillReport = output.report();
    let reasons: Vec<_> = report.incomplete.iter().map(|it| &*it.reason).collect();
    assert!(reasons.contains(&"switched_off"), "{report:?}");
    assert_eq!(
        (output.code, report.survivors.len()),
        (Some(1), 0),
        "{output:?}"
    );
    // Who was created by members since is not known, and that is said.
    finish(&sandbox, &actor);
}

/// A tree of which some are asleep, some busy, and some come and go.
fn tree(sandbox: &Sandbox) -> Actor {
    let file = sandbox.directory().join("beats");
    let mut actor = actor!(sandbox, "pulse", MEMBERS, file.display());
    actor.step();
    actor
}

fn start(actor: &Actor) -> Running {
    let lifemon = Lifemon::find();
    let target = actor.pid().to_string();
    lifemon.start(lifemon.command(["kill", &target, "-o", "json", "--accept-suspects"]))
}

/// How long a kill takes that nobody disturbs, its program's start included.
fn usual_time() -> Duration {
    let times = [(); 3].map(|()| {
        let sandbox = Sandbox::new();
        let actor = tree(&sandbox);
        let begun = Instant::now();
        assert_killed(&start(&actor).finish(DEADLINE));
        begun.elapsed()
    });
    times.into_iter().max().expect("three")
}

/// Kills what is left by a second command: by its root where that is known, alive or dead;
/// otherwise one by one.
#[track_caller]
fn finish(sandbox: &Sandbox, actor: &Actor) {
    if alive(sandbox).is_empty() {
        return;
    }
    let output = kill(&actor.pid(), &[]);
    if output.code == Some(0) {
        checked(output.report());
        return assert_nobody(sandbox);
    }
    // Its root was dead already, with nobody to keep its lineage, or all were about to die.
    assert_eq!(output.code, Some(4), "{output:?}");
    let rest: Vec<_> = alive(sandbox).iter().map(i32::to_string).collect();
    if !rest.is_empty() {
        let words = ["kill", "--accept-suspects"].map(str::to_owned);
        let output = Lifemon::find().run(words.iter().chain(&rest));
        assert!(matches!(output.code, Some(0 | 4)), "{output:?}");
        wait_until("the end of all", DEADLINE, || alive(sandbox).is_empty());
    }
}

/// Starts a kill and sends it SIGKILL when it has hit so many.
#[track_caller]
fn kill_after_strikes(actor: &Actor, count: usize) {
    let lifemon = Lifemon::find();
    let target = actor.pid().to_string();
    let mut command = lifemon.command(["kill", &target, "-o", "json", "--accept-suspects"]);
    let mut toll = Toll::on(&mut command, libc::SYS_pidfd_send_signal);
    let running = lifemon.start(command);
    for _ in 0..count {
        // The closer is quick where some run: then not so many are left to be hit.
        let Some(held) = toll.next(&running) else {
            return;
        };
        toll.let_go(&held);
    }
    running.kill();
}

/// SIGKILL to lifemon, half of the times at moments that are spread over the whole of a kill, half
/// of the times for certain in its middle.
#[track_caller]
fn kill_the_killer(trials: u64) {
    let detached = || wait_until("no closer", DEADLINE, || closer::attached() == 0);
    let usual = usual_time();
    let mut part = 0.0;
    for trial in 0..trials {
        part = (part + GOLDEN) % 1.0;
        let sandbox = Sandbox::new();
        let actor = tree(&sandbox);
        if trial % 2 == 0 {
            let running = start(&actor);
            thread::sleep(usual.mul_f64(part));
            running.kill();
        } else {
            kill_after_strikes(&actor, 1 + trial as usize % (MEMBERS as usize / 2));
        }
        detached();
        finish(&sandbox, &actor);
        detached();
    }
}

#[test]
fn lifemon_is_killed_at_any_moment_tracker_off() {
    // Dropped at the end, it claims that there is no program, map or link.
    needs!(no_tracker);
    kill_the_killer(scaled(TRIALS_OFF));
}

#[test]
fn lifemon_is_killed_at_any_moment_tracker_on() {
    let tracker = HostTracker::on(&[]);
    kill_the_killer(scaled(TRIALS));
    // Its slots are not lost either.
    let sandbox = Sandbox::new();
    assert_killed(&start(&tree(&sandbox)).finish(DEADLINE));
    assert_eq!(tracker.status().watched_trees, 0);
}

/// Stopped in the middle, and so for certain in the middle: the closer is attached, some are dead.
#[test]
fn lifemon_is_killed_while_the_closer_is_attached() {
    for on in [false, true] {
        let _tracker = if on {
            HostTracker::on(&[])
        } else {
            HostTracker::off()
        };
        let sandbox = Sandbox::new();
        // `sleep`, not an actor: nothing of it is left to be reaped by us.
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 100 & sleep 100 & wait"]);
        sandbox.enter(&mut shell);
        let mut root = shell.spawn().expect("a shell");
        wait_until("its children", DEADLINE, || alive(&sandbox).len() == 3);
        let target = root.id().to_string();
        let lifemon = Lifemon::find();
        let mut command = lifemon.command(["kill", &target, "-o", "json", "--accept-suspects"]);
        let mut toll = Toll::on(&mut command, libc::SYS_pidfd_send_signal);
        let running = lifemon.start(command);
        _ = toll.next(&running).expect("a signal");
        wait_until("the closer", DEADLINE, || closer::attached() == 1);
        running.kill();
        wait_until("its detaching", DEADLINE, || closer::attached() == 0);
        assert_eq!(alive(&sandbox).len(), 3);
        let output = kill(&target, &[]);
        assert_nobody(&sandbox);
        assert_killed(&output);
        root.wait().expect("a shell that is dead");
    }
}
